"""Reviews and comparisons of finished, running and crashed runs."""
