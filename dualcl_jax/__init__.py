"""Momentum contrastive pre-training with dual views and hard negatives, in JAX and Flax."""
