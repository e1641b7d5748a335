"""All packed models of a run, measured side by side on the same held-out text."""

import logging
import math
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from trilith.evaluation.config import EvaluateConfig
from trilith.evaluation.quality import HeldOut, bits_per_byte, score_answers, score_text
from trilith.evaluation.speed import SpeedConfig, measure_speed
from trilith.evolution import AnswerRows
from trilith.files import require, sha256
from trilith.model import Transformer
from trilith.packed import PackedFile, build_packed_model, measure, read_packed
from trilith.runtime import Engine, GenerateConfig, SamplingConfig, stream_text
from trilith.tokens import StreamDecoder, Tokenizer, bigram_loss, open_split, unigram_loss

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
        `models`, `floors`, `samples` and `run`, as the report reads them, and `packed_sha256` of
        each model's file, by which an export knows whose figures these are.

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
    models = _measure_all(files, test)
    log.info(
        "evaluate: %d models on %d test tokens; dense %.3f nats",
        len(models),
        len(shard.tokens) - 1,
        models[REFERENCE]["loss_nats"],
    )
    return {
        "models": models,
        "floors": _floors(tokens_dir, held_out),
        "samples": {file.path.stem: _samples(file.path, test) for file in files},
        "run": _setting(test, model_name=files[0].manifest.model.name),
        "packed_sha256": {file.path.stem: sha256(file.path) for file in files},
    }


def _order(path: Path) -> tuple[bool, bool, bool, str]:
    """The reference first, then pretrained and evolved models, dense controls last."""
    name = path.stem
    return name != REFERENCE, name.startswith(REFERENCE), name.startswith("evolved"), name


def _setting(test: TestSet, *, model_name: str) -> dict[str, Any]:
    """On what, and how, everything was measured."""
    return {
        "model": model_name,
        "test_tokens": len(test.held_out.tokens) - 1,
        "test_answers": len(test.answers.tokens),
        "prompt_tokens": test.config.prompt_tokens,
        "decode_tokens": test.config.decode_tokens,
        "python": platform.python_version(),
    }


def _require_tokenizer(file: PackedFile, tokenizer: Tokenizer) -> None:
    if file.manifest.tokenizer_sha256 != tokenizer.sha256:
        raise ValueError(
            f"{file.path} holds another tokenizer than the token shards; run pack again after "
            "tokenize and pretrain"
        )


def _measure_all(files: list[PackedFile], test: TestSet) -> dict[str, dict[str, Any]]:
    """Measure every file beside the first, and its perplexity to that of its own reference."""
    reference = build_packed_model(files[0])
    models = {file.path.stem: _measure(file, reference, test) for file in files}
    for figures in models.values():
        base = models[figures["reference"]]["loss_nats"]
        figures["perplexity_ratio"] = math.exp(figures["loss_nats"] - base)
    return models


def _measure(file: PackedFile, reference: Transformer, test: TestSet) -> dict[str, Any]:
    name = file.path.stem
    engine = Engine(build_packed_model(file), file=file)
    quality = score_text(engine.model, reference=reference, held_out=test.held_out, name=name)
    report = measure(file)
    config = test.config
    timed = SpeedConfig(config.prompt_tokens, config.decode_tokens, config.repeats, batch_size=1)
    speed = measure_speed(engine, timed)
    provenance = file.manifest.provenance
    return {
        "loss_nats": quality.loss_nats,
        "perplexity": math.exp(quality.loss_nats),
        "perplexity_ratio": None,
        "reference": provenance["reference"],
        "bits_per_byte": _bits_per_byte(quality.loss_nats, test.held_out),
        "answer_loss_nats": score_answers(
            engine.model, test.answers.tokens, test.answers.answer_mask
        ),
        "top1_agreement": quality.top1_agreement,
        "kl_nats": quality.kl_nats,
        "file_bytes": report.file_bytes,
        "bits_per_weight": report.bits_per_weight,
        "prefill_tokens_per_s": speed.prefill_tokens_per_s,
        "decode_tokens_per_s": speed.decode_tokens_per_s,
        "num_tokens_seen": provenance["num_tokens_seen"],
    }


def _floors(tokens_dir: Path, held_out: HeldOut) -> dict[str, Any]:
    """What counting alone reaches on the same tokens: unigrams and smoothed bigrams."""
    train = open_split(tokens_dir, "train")
    floors = {}
    for name, loss in (("unigram", unigram_loss), ("bigram", bigram_loss)):
        nats = loss(train.tokens, test=held_out.tokens, vocab_size=train.vocab_size)
        floors[name] = {
            "loss_nats": nats,
            "perplexity": math.exp(nats),
            "bits_per_byte": _bits_per_byte(nats, held_out),
        }
    return floors


def _bits_per_byte(loss_nats: float, held_out: HeldOut) -> float:
    num_tokens = len(held_out.tokens) - 1
    return bits_per_byte(loss_nats, num_tokens=num_tokens, num_bytes=held_out.num_bytes)


def _samples(path: Path, test: TestSet) -> list[dict[str, str]]:
    engine = Engine.load(path)
    sampling = SamplingConfig(
        temperature=test.config.sample_temperature,
        top_k=None,
        top_p=None,
        repetition_penalty=1.0,
        seed=0,
    )
    generation = GenerateConfig(
        max_new_tokens=test.config.sample_tokens,
        stop_ids=test.tokenizer.stop_ids,
        sampling=sampling,
    )
    return [
        {"prompt": prompt, "completion": "".join(_stream(engine, prompt, test, generation))}
        for prompt in test.config.prompts
    ]


def _stream(
    engine: Engine, prompt: str, test: TestSet, generation: GenerateConfig
) -> Iterator[str]:
    return stream_text(
        engine,
        prompt=prompt,
        tokenizer=test.tokenizer,
        decoder=StreamDecoder(test.tokenizer),
        config=generation,
    )
