"""All packed models of a run, measured side by side on the same held-out text."""

import logging
import math
import platform
from pathlib import Path
from typing import Any, NamedTuple

from trilith.evaluation.config import EvaluateConfig
from trilith.evaluation.quality import HeldOut
from trilith.evolution import AnswerRows
from trilith.files import require
from trilith.packed import build_packed_model, read_packed
from trilith.tokens import Tokenizer, open_split

log = logging.getLogger(__name__)

# The model whose predictions all others are compared with.
REFERENCE = "dense"


class TestSet(NamedTuple):
    """What every model is measured on."""

    held_out: HeldOut
    answers: AnswerRows
    tokenizer: Tokenizer
    config: EvaluateConfig


def evaluate_models(
    packed_dir: Path,
    *,
    tokens_dir: Path,
    answers: AnswerRows,
    config: EvaluateConfig,
    context: int,
) -> dict[str, Any]:
    """Measure every packed file in a folder.

    Args:
        packed_dir: holds `dense.safetensors` and any others.
        tokens_dir: test split, and the train split for the n-gram floors.
        answers: held-out instructions.
        config: lengths and prompts.
        context: window in which the test split is scored.

    Returns:
        `models`, `floors`, `samples` and `run`, as the report reads them.

    Raises:
        FileNotFoundError: the folder or the dense reference is missing.
        ValueError: a packed file is damaged or holds another tokenizer than the shards.
    """
    require(packed_dir / f"{REFERENCE}.safetensors", made_by="pack")
    tokenizer = Tokenizer.load(tokens_dir / "tokenizer.model")
    shard = open_split(tokens_dir, "test")
    held_out = HeldOut(shard.tokens, shard.num_bytes, context)
    test = TestSet(held_out, answers, tokenizer, config)
    files = [read_packed(path) for path in sorted(packed_dir.glob("*.safetensors"), key=_order)]
    for file in files:
        _require_tokenizer(file, tokenizer)
    reference = build_packed_model(files[0])
    models = {file.path.stem: _measure(file, reference, test) for file in files}
    for figures in models.values():
        base = models[figures["reference"]]["loss_nats"]
        figures["perplexity_ratio"] = math.exp(figures["loss_nats"] - base)
    return {
        "models": models,
        "floors": _floors(tokens_dir, held_out),
        "samples": {file.path.stem: _samples(file.path, config) for file in files},
        "run": {
            "test_tokens": len(shard.tokens) - 1,
            "test_answers": len(answers.tokens),
            "prompt_tokens": config.prompt_tokens,
            "decode_tokens": config.decode_tokens,
            "python": platform.python_version(),
        },
    }
