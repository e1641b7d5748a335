"""The command line: `trilith generate`, `trilith info`, `trilith import`, `trilith doctor`."""

from trilith.cli.main import main

__all__ = ["main"]
