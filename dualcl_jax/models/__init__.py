"""Encoders: backbones, heads and normalisation, and encoders exported to files (`exports`)."""
