"""All models of a run, packed side by side into one folder."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from trilith.files import replacing
from trilith.model import Checkpoint, ModelConfig, load_checkpoint, require_shape
from trilith.packed.config import DENSE, PackConfig
from trilith.packed.contents import Attachments, TokenizerParts
from trilith.packed.measure import PackReport, latent_histogram
from trilith.packed.write import write_packed
from trilith.quant import grid_named
from trilith.tokens import Tokenizer, open_split

log = logging.getLogger(__name__)

_PROOF_ROWS = 4
# Enough to reach every weight, few enough for a large model.
_DRAWN_LENGTH = 64
_NUM_BINS = 81


class Shelf(NamedTuple):
    """What was packed: flat metrics, and the histograms of weights and codes by model."""

    metrics: dict[str, Any]
    histograms: dict[str, Any]


def pack_all(
    checkpoints: list[Path],
    *,
    model: ModelConfig,
    tokens_dir: Path,
    config: PackConfig,
    out_dir: Path,
) -> Shelf:
    """Pack checkpoints to `out_dir/<folder's name>.safetensors`, each with its proof.

    Args:
        checkpoints: folders, as pretrain and evolve write them.
        model: the shape that all of them have.
        tokens_dir: the tokenizer, and the test tokens that the proof runs on.
        config: for models on a grid; dense ones are packed as DENSE.
        out_dir: replaced as a whole.

    Raises:
        ValueError: a checkpoint is damaged, of another shape or trained with another tokenizer, or
            a proof fails.
    """
    tokenizer = Tokenizer.load(tokens_dir / "tokenizer.model")
    test_tokens = open_split(tokens_dir, "test").tokens
    metrics: dict[str, Any] = {}
    histograms: dict[str, Any] = {}
    with replacing(out_dir) as partial:
        partial.mkdir()
        for folder in tqdm(checkpoints, desc="pack", unit="model", disable=None):
            checkpoint = _load(folder, tokenizer)
            require_shape(checkpoint.model.config, model, origin=str(folder))
            report = pack_checkpoint(
                checkpoint,
                path=partial / f"{folder.name}.safetensors",
                config=config if checkpoint.quant else DENSE,
                tokenizer=tokenizer,
                proof_tokens=_proof_tokens(test_tokens, checkpoint),
            )
            metrics |= _sizes(folder.name, report)
            histograms[folder.name] = _histograms(checkpoint, report)
    sizes = [metrics[f"{folder.name}/file_bytes"] / 1e6 for folder in checkpoints]
    log.info(
        "pack: %d models of %.2f to %.2f MB, logits equal to the trained models', in %s",
        len(sizes),
        min(sizes),
        max(sizes),
        out_dir,
    )
    return Shelf(metrics, histograms)


def pack_checkpoint(
    checkpoint: Checkpoint,
    *,
    path: Path,
    config: PackConfig,
    tokenizer: Tokenizer,
    proof_tokens: torch.Tensor,
) -> PackReport:
    """Pack one checkpoint with its tokenizer, proved as `write_packed` does.

    Args:
        checkpoint: any model.
        path: the file to write.
        config: codec and precision of embedding and head.
        tokenizer: the one that the model was trained with.
        proof_tokens: token ids [B, T].
    """
    parts = TokenizerParts(tokenizer.model_bytes, tokenizer.special_ids)
    return write_packed(
        checkpoint.model,
        path=path,
        config=config,
        attachments=Attachments(parts, checkpoint.provenance),
        proof_tokens=proof_tokens,
    )


def drawn_proof_tokens(model: ModelConfig) -> torch.Tensor:
    """Draw ids [B, T] for a proof where no text is at hand; always the same ones."""
    generator = torch.Generator().manual_seed(0)
    shape = (_PROOF_ROWS, min(_DRAWN_LENGTH, model.context))
    return torch.randint(model.vocab_size, shape, generator=generator)


def _load(folder: Path, tokenizer: Tokenizer) -> Checkpoint:
    checkpoint = load_checkpoint(folder, made_by="pretrain or evolve")
    if checkpoint.tokenizer_sha256 != tokenizer.sha256:
        raise ValueError(
            f"{folder} was trained with another tokenizer (SHA-256 "
            f"{checkpoint.tokenizer_sha256[:12]}) than the shards have ({tokenizer.sha256[:12]}); "
            "train it again or restore its tokenizer"
        )
    return checkpoint


def _proof_tokens(test_tokens: np.ndarray, checkpoint: Checkpoint) -> torch.Tensor:
    """Real text for the proof: a few rows of full context, or what the split has."""
    context = min(checkpoint.model.config.context, len(test_tokens) // _PROOF_ROWS)
    rows = test_tokens[: _PROOF_ROWS * context].astype(np.int64)
    return torch.from_numpy(rows).view(_PROOF_ROWS, context)


def _sizes(name: str, report: PackReport) -> dict[str, Any]:
    sizes = {
        "file_bytes": report.file_bytes,
        "bits_per_weight": report.bits_per_weight,
        "bits_per_parameter": report.bits_per_parameter,
    }
    parts = {f"bytes/{part}": size for part, size in report.bytes_by_part.items() if size}
    return {f"{name}/{key}": value for key, value in (sizes | parts).items()}


def _histograms(checkpoint: Checkpoint, report: PackReport) -> dict[str, Any]:
    latent = latent_histogram(checkpoint.model, num_bins=_NUM_BINS)
    weights = {"edges": latent.edges.tolist(), "counts": latent.counts.tolist()}
    if not report.code_counts:
        return {"weights": weights}
    ((grid, counts),) = report.code_counts.items()
    return {"weights": weights, "codes": {"levels": grid_named(grid).levels, "counts": counts}}
