"""The packed file: write with proof, read with checks, load, measure.

What packs a checkpoint with its tokenizer is in `packed.shelf`: what runs a file needs neither.
"""

from trilith.packed.config import DENSE, PackConfig
from trilith.packed.contents import Attachments, TokenizerParts
from trilith.packed.load import (
    build_outer_model,
    build_packed_block,
    build_packed_model,
    load_model,
)
from trilith.packed.manifest import CodesEntry, Manifest, TensorEntry
from trilith.packed.measure import Histogram, PackReport, latent_histogram, measure
from trilith.packed.precision import RowForm, row_bytes, store_rows
from trilith.packed.read import PackedFile, naming, open_unchecked, read_packed
from trilith.packed.verify import TensorCheck, Verification, verify_packed
from trilith.packed.write import round_to_stored, write_packed

__all__ = [
    "DENSE",
    "Attachments",
    "CodesEntry",
    "Histogram",
    "Manifest",
    "PackConfig",
    "PackReport",
    "PackedFile",
    "RowForm",
    "TensorCheck",
    "TensorEntry",
    "TokenizerParts",
    "Verification",
    "build_outer_model",
    "build_packed_block",
    "build_packed_model",
    "latent_histogram",
    "load_model",
    "measure",
    "naming",
    "open_unchecked",
    "read_packed",
    "round_to_stored",
    "row_bytes",
    "store_rows",
    "verify_packed",
    "write_packed",
]
