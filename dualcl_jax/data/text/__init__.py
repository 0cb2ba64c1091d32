"""Text: sentences and pairs of sentences from files, and their tokens."""
