"""Measurements: ratios taken in one run against a floor or a peer, written as a table and as JSON."""
