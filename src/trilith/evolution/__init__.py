"""Evolution of a dense model through grids: instructions, answer masks, distillation, descent."""

from trilith.evolution.answers import AnswerRows, Marks, encode_instructions, pack_instructions
from trilith.evolution.config import InstructionConfig
from trilith.evolution.dataset import (
    InstructionSet,
    announce_licence,
    check_files,
    read_instructions,
)
from trilith.evolution.descent import grid_sqnr_db
from trilith.evolution.distill import forward_kl
from trilith.evolution.gridfit import FitMethod, GridFit, fit_to_grid
from trilith.evolution.instructions import Instruction, SourceText, Turn, derive_instructions

__all__ = [
    "AnswerRows",
    "FitMethod",
    "GridFit",
    "Instruction",
    "InstructionConfig",
    "InstructionSet",
    "Marks",
    "SourceText",
    "Turn",
    "announce_licence",
    "check_files",
    "derive_instructions",
    "encode_instructions",
    "fit_to_grid",
    "forward_kl",
    "grid_sqnr_db",
    "pack_instructions",
    "read_instructions",
]
