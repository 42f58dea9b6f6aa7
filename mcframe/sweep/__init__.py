"""A grid of gin overrides over seeds at equal tokens: read, planned, run side by side, compared and drawn."""
