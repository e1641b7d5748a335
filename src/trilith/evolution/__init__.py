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
from trilith.evolution.distill import TopPredictions, forward_kl, top_kl, top_predictions
from trilith.evolution.gridfit import FitMethod, GridFit, fit_to_grid
from trilith.evolution.instructions import Instruction, SourceText, Turn, derive_instructions
from trilith.evolution.sensitivity import groups_within, layer_costs

__all__ = [
    "AnswerRows",
    "FitMethod",
    "GridFit",
    "Instruction",
    "InstructionConfig",
    "InstructionSet",
    "Marks",
    "SourceText",
    "TopPredictions",
    "Turn",
    "announce_licence",
    "check_files",
    "derive_instructions",
    "encode_instructions",
    "fit_to_grid",
    "forward_kl",
    "grid_sqnr_db",
    "groups_within",
    "layer_costs",
    "pack_instructions",
    "read_instructions",
    "top_kl",
    "top_predictions",
]
