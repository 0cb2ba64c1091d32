"""The method: the choices of a config, and the parts of a training step."""
