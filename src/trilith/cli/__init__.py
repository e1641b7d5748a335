"""The command line: `trilith generate`, `trilith info`, `trilith doctor`."""

from trilith.cli.main import main

__all__ = ["main"]
