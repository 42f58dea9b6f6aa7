import sys
from pathlib import Path

# The per-token oracle lives in tests/context.
sys.path.insert(0, str(Path(__file__).parents[1] / "context"))
