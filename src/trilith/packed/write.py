"""Writing a packed file, and the proof, before it gets its name, that it is the trained model."""

import copy
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trilith.files import replacing
from trilith.kernels import PackedEmbedding, PackedHead, StoredRows
from trilith.model import ModelConfig, Transformer, empty_model
from trilith.packed.config import PackConfig
from trilith.packed.contents import Attachments, Contents
from trilith.packed.load import build_packed_model
from trilith.packed.manifest import to_metadata
from trilith.packed.measure import PackReport, measure
from trilith.packed.precision import RowForm, store_rows
from trilith.packed.read import read_packed
from trilith.quant import BitLinear

log = logging.getLogger(__name__)


def write_packed(
    model: Transformer,
    *,
    path: Path,
    config: PackConfig,
    attachments: Attachments,
    proof_tokens: Tensor,
    blocks: Iterable[nn.Module] | None = None,
) -> PackReport:
    """Pack a trained model to one self-contained file, proved equal before it is in place.

    The bytes written beside are read back, built and run on `proof_tokens`; their logits must be,
    bit for bit (`torch.equal`), those of the fake-quantized training model with embedding, head and
    dense projections rounded to their stored precision. Otherwise nothing stays.

    Args:
        model: dense or BitLinear projections, on any device; it is left as it is.
        path: the file to write.
        config: codec and precision of embedding and head.
        attachments: tokenizer and training provenance.
        proof_tokens: token ids [B, T] for the proof.
        blocks: the model's blocks, asked for one by one, each of which may be gone when the next
            comes; those of `model` itself then stay unused. None for its own.

    Raises:
        ValueError: a weight is not finite, the attachments do not fit the model, or the packed
            model's logits differ.
    """
    _check_inputs(model.config, attachments=attachments, proof_tokens=proof_tokens)
    contents = Contents(config)
    expected = _take_apart(model, model.blocks if blocks is None else blocks, contents)(
        proof_tokens.cpu()
    )
    manifest = contents.manifest(model.config, attachments)
    with replacing(path) as beside:
        save_file(contents.tensors, beside, metadata=to_metadata(manifest))
        contents.tensors.clear()
        file = read_packed(beside)
        _prove(build_packed_model(file), expected=expected, tokens=proof_tokens.cpu(), path=path)
        report = replace(measure(file), path=Path(path))
    log.debug(
        "packed %d weights to %s: %d bytes, %.3f bits per projection weight, logits equal on %d "
        "tokens",
        report.num_parameters,
        path,
        report.file_bytes,
        report.bits_per_weight,
        proof_tokens.numel(),
    )
    return report


@torch.no_grad()
def round_to_stored(model: Transformer, *, config: PackConfig) -> None:
    """Round, in place, what a packed file does not keep in float32: embedding, head, dense weights.

    Afterwards the training model computes exactly what its packed file does.
    """
    rows = [(model.embedding.weight, config.embedding_form)]
    if not model.config.tied_head:
        rows.append((model.head.weight, config.head_form))
    for weight, form in rows:
        weight.copy_(store_rows(weight, form).restore())
    _round_dense(model.blocks)


class _TakenApart(nn.Module):
    """A block that is asked for, taken apart and run in one go, and then forgotten."""

    def __init__(self, source: Iterator[nn.Module], contents: Contents, name: str) -> None:
        super().__init__()
        # In a tuple, where a module is no child of this one.
        self._from = (source, contents, name)

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        source, contents, name = self._from
        block = _snapshot(next(source), name)
        contents.add_modules(block, name)
        _round_dense(block)
        return block(x, *context)


def _take_apart(
    model: Transformer, blocks: Iterable[nn.Module], contents: Contents
) -> Callable[[Tensor], Tensor]:
    """Return what computes the logits of the training model, and fills `contents` doing so."""
    config, source = contents.config, iter(blocks)
    running = empty_model(model.config, partial(nn.Linear, bias=False))
    for index in range(model.config.num_layers):
        running.blocks[index] = _TakenApart(source, contents, f"blocks.{index}")
    running.set_submodule("norm", _snapshot(model.norm, "norm"))
    contents.add_modules(running.norm, "norm")
    embedding = head = _stored(model.embedding, "embedding", config.embedding_form)
    contents.add_rows(embedding, "embedding")
    if not model.config.tied_head:
        head = _stored(model.head, "head", config.head_form)
        contents.add_rows(head, "head")
    running.set_submodule("embedding", PackedEmbedding(embedding))
    running.set_submodule("head", PackedHead(head))
    return torch.no_grad()(running.requires_grad_(False).eval())


def _stored(module: nn.Module, name: str, form: RowForm) -> StoredRows:
    weight = _snapshot(module, name).weight
    assert isinstance(weight, Tensor)
    return store_rows(weight, form)


def _snapshot(module: nn.Module, name: str) -> nn.Module:
    """Return a copy in float32 on the CPU.

    Raises:
        ValueError: a weight is not finite.
    """
    copied = copy.deepcopy(module).cpu().float().requires_grad_(False).eval()
    for key, weight in copied.named_parameters(prefix=name):
        if not weight.isfinite().all():
            raise ValueError(f"{key} holds a weight that is not finite; the training diverged")
    return copied


@torch.no_grad()
def _round_dense(blocks: nn.Module) -> None:
    for module in blocks.modules():
        if isinstance(module, nn.Linear) and not isinstance(module, BitLinear):
            module.weight.copy_(module.weight.to(torch.bfloat16).float())


def _check_inputs(model: ModelConfig, *, attachments: Attachments, proof_tokens: Tensor) -> None:
    vocab_size = model.vocab_size
    for name, token in attachments.tokenizer.special_ids.items():
        if not 0 <= token < vocab_size:
            raise ValueError(
                f"special id {name}={token} is outside the model's vocabulary of {vocab_size}; "
                "pack with the tokenizer the model was trained with"
            )
    fits = proof_tokens.dim() == 2 and proof_tokens.shape[1] <= model.context
    if not fits or not proof_tokens.numel():
        raise ValueError(
            f"proof_tokens has shape {list(proof_tokens.shape)}; expected [B, T] with T up to the "
            f"model's context={model.context}"
        )


@torch.no_grad()
def _prove(packed: Transformer, *, expected: Tensor, tokens: Tensor, path: Path) -> None:
    found = packed(tokens)
    if torch.equal(found, expected):
        return
    error = float((found - expected).abs().max() / expected.abs().max())
    raise ValueError(
        f"{path} was not written: the packed logits differ from the trained model's by {error:.2e} "
        "of the largest logit, expected none; this is a defect of the packer or of a kernel"
    )
