"""Evaluators: measure the quality of the features of a frozen encoder."""
