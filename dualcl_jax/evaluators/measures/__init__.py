"""What the protocols measure, as functions of arrays."""
