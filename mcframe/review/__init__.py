"""Reading finished, running and crashed runs: what their numbers say, and what they do not."""
