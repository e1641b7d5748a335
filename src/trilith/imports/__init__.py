"""Checkpoints of other projects, and our own: what any of them holds, as our model."""

from trilith.imports.folder import require_free, write_import
from trilith.imports.opening import open_source
from trilith.imports.quantizing import pack_on_grid
from trilith.imports.source import Source

__all__ = ["Source", "open_source", "pack_on_grid", "require_free", "write_import"]
