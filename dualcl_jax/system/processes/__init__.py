"""The processes of a run: how they start, find each other, and notice that one is lost."""
