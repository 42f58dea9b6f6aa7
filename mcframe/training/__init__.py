"""The trainer: settings, the DeepSpeed engine, the loop on its token clock, checkpoints."""
