"""Metrics of a run: catalogue, accumulator, timers, loggers, console, figures, FLOPs and summary."""
