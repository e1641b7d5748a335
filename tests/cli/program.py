"""The command line as a program of its own."""

import os
import sys
from pathlib import Path

PROGRAM = [sys.executable, "-c", "import sys; from trilith.cli import main; sys.exit(main())"]
# Far beyond any wait of a busy machine.
PATIENCE_S = 120


def environment() -> dict[str, str]:
    """What the program runs with: this checkout, one thread."""
    source = Path(__file__).resolve().parents[2] / "src"
    return os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
