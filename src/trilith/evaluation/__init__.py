"""Quality, agreement, answers and speed of models, measured from their packed files."""

from trilith.evaluation.config import EvaluateConfig
from trilith.evaluation.models import evaluate_models
from trilith.evaluation.quality import (
    HeldOut,
    TextQuality,
    bits_per_byte,
    score_answers,
    score_text,
)
from trilith.evaluation.speed import Speed, SpeedConfig, measure_speed

__all__ = [
    "EvaluateConfig",
    "HeldOut",
    "Speed",
    "SpeedConfig",
    "TextQuality",
    "bits_per_byte",
    "evaluate_models",
    "measure_speed",
    "score_answers",
    "score_text",
]
