"""The command line: `trilith generate`, `info`, `memory`, `import` and `doctor`."""

from trilith.cli.main import main

__all__ = ["main"]
