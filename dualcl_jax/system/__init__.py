"""Shared infrastructure: errors, flags, configs, files, devices and processes."""
