"""The workdir: the folder of a run and everything stored in it."""
