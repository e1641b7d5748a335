"""The command line: `trilith generate`, `chat`, `serve`, `bench`, `info` and others."""

from trilith.cli.main import main

__all__ = ["main"]
