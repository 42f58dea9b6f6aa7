import sys
from pathlib import Path

# The slow references live with the code that they are of.
for folder in ("context", "modeling", "data"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))
