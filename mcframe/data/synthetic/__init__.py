"""Generated tasks: sequences whose answers are known and lie in blocks that may be collapsed."""
