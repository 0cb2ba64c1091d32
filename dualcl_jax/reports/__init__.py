"""What a run leaves to look at: figures and the report."""
