"""Sets of sentences on which encoders of text are measured, read from the files in which they are distributed."""
