"""The push button at the bedside: edges of a GPIO line become short and long presses."""
