"""Sets of sentences that encoders of text are measured on, read from the files in which they are distributed."""
