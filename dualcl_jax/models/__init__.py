"""Encoders: backbones, heads and normalisation, and encoders as files of their own (`exports`)."""
