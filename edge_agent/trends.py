"""Trends: the last minutes of each vital of each bed, in memory of a fixed size."""
