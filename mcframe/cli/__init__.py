"""The command line: `mcframe ...`, and what `mcframe/run.py` does on each rank."""
