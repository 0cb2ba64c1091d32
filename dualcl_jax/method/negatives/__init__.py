"""Negatives: where they come from, which of them count, and the loss against a queue."""
