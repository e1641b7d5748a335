"""The packed file: write with proof, read with checks, load, measure."""

from trilith.packed.config import PackConfig
from trilith.packed.contents import Attachments, TokenizerParts
from trilith.packed.load import build_packed_model, load_model
from trilith.packed.manifest import CodesEntry, Manifest, TensorEntry
from trilith.packed.measure import Histogram, PackReport, latent_histogram, measure
from trilith.packed.precision import RowForm, row_bytes, store_rows
from trilith.packed.read import PackedFile, read_packed
from trilith.packed.shelf import DENSE, Shelf, drawn_proof_tokens, pack_all, pack_checkpoint
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
    "Shelf",
    "TensorCheck",
    "TensorEntry",
    "TokenizerParts",
    "Verification",
    "build_packed_model",
    "drawn_proof_tokens",
    "latent_histogram",
    "load_model",
    "measure",
    "pack_all",
    "pack_checkpoint",
    "read_packed",
    "round_to_stored",
    "row_bytes",
    "store_rows",
    "verify_packed",
    "write_packed",
]
