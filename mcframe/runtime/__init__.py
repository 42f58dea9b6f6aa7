"""Use a trained model: a history without end, sessions over it, sampling."""
