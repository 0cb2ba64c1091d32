"""The folder of a run, and everything that is stored in it."""
