import sys
from pathlib import Path

# The oracle and the generators beside it are shared with tests/modeling and tests/plugins.
sys.path.insert(0, str(Path(__file__).parent))
