"""Callbacks of the trainer, each called every so many dataset tokens."""
