"""The risk model: its inputs, its signed bundles and the runner. Knows nothing of the agent; may only add an alarm."""
