"""The long tests, run by `make soak`: each file is named on pytest's command line."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
