"""The root of this tree. Imported first, it puts the tree's own package before any installed one.

`dvc exp run --temp` copies the tree: a stage must import the package it was copied with.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))
