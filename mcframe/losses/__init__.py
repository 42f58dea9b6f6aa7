"""The training loss: its terms by name, and the targets that LensNet is trained on. The terms are in plugins/loss."""
