"""Trilith: from a corpus, or a dense checkpoint, to 1.58-bit language models."""

__version__ = "0.1.0"
