"""Pytrees, as a type."""

from typing import Any

Tree = Any
"""A pytree, of NumPy or JAX arrays or of their shapes: a leaf, or dicts, lists, tuples or dataclasses of trees."""
