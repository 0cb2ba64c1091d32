"""Evaluators: what the features of a frozen encoder are worth."""
