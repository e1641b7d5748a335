"""The command line: `trilith` and its commands, one file each."""

from trilith.cli.main import main

__all__ = ["main"]
