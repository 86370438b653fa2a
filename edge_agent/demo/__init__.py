"""Simulated bedside devices that speak real protocols over real links, and the demo that is made of them."""
