"""What a run says about itself: metric names, accumulation, sinks, progress, FLOPs and the closing summary.

Everything here is passive: it receives tensors or floats and never reaches back into the trainer.
"""
