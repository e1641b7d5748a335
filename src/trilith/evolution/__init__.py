"""Evolution of a dense model through grids: instructions, answer masks, distillation, descent."""

from trilith.evolution.answers import AnswerRows, Marks, encode_instructions
from trilith.evolution.descent import grid_sqnr_db
from trilith.evolution.distill import forward_kl
from trilith.evolution.instructions import Instruction, SourceText, derive_instructions

__all__ = [
    "AnswerRows",
    "Instruction",
    "Marks",
    "SourceText",
    "derive_instructions",
    "encode_instructions",
    "forward_kl",
    "grid_sqnr_db",
]
