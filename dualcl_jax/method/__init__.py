"""The method: what a config chooses, and the parts of a training step."""
