"""The package as functions: what the commands do, for programs and notebooks."""
