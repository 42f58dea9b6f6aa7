"""Grids of gin overrides over seeds at equal tokens: plan, run, compare and draw them."""
