"""What a run does next to its steps, each after a number of dataset tokens."""
