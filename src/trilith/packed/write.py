"""Writing a packed file, and the proof, before it gets its name, that it is the trained model."""

import copy
import logging
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trilith.files import replacing
from trilith.model import Transformer
from trilith.packed.config import PackConfig
from trilith.packed.contents import Attachments, Contents, take_apart
from trilith.packed.load import build_packed_model
from trilith.packed.manifest import to_metadata
from trilith.packed.measure import PackReport, measure
from trilith.packed.precision import store_rows
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
) -> PackReport:
    """Pack a trained model to one self-contained file, proved equal before it is in place.

    The bytes written beside are read back, built and run on `proof_tokens`; their logits must be,
    bit for bit (`torch.equal`), those of the fake-quantized training model with embedding, head and
    dense projections rounded to their stored precision. Otherwise nothing stays.

    Args:
        model: dense or BitLinear projections, on any device; it is left as it is.
        path: the file to write.
        config: codec and precision of the embedding.
        attachments: tokenizer and training provenance.
        proof_tokens: token ids [B, T] for the proof.

    Raises:
        ValueError: a weight is not finite, the attachments do not fit the model, or the packed
            model's logits differ.
    """
    snapshot = copy.deepcopy(model).cpu().float().eval()
    _check_inputs(snapshot, attachments=attachments, proof_tokens=proof_tokens)
    contents = take_apart(snapshot, config=config, attachments=attachments)
    round_to_stored(snapshot, config=config)
    with replacing(path) as partial:
        _save(contents, partial)
        file = read_packed(partial)
        _prove(build_packed_model(file), snapshot=snapshot, tokens=proof_tokens.cpu(), path=path)
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
    for module in model.blocks.modules():
        if isinstance(module, nn.Linear) and not isinstance(module, BitLinear):
            module.weight.copy_(module.weight.to(torch.bfloat16).float())


def _check_inputs(model: Transformer, *, attachments: Attachments, proof_tokens: Tensor) -> None:
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise ValueError(f"{name} holds a weight that is not finite; the training diverged")
    vocab_size = model.config.vocab_size
    for name, token in attachments.tokenizer.special_ids.items():
        if not 0 <= token < vocab_size:
            raise ValueError(
                f"special id {name}={token} is outside the model's vocabulary of {vocab_size}; "
                "pack with the tokenizer the model was trained with"
            )
    fits = proof_tokens.dim() == 2 and proof_tokens.shape[1] <= model.config.context
    if not fits or not proof_tokens.numel():
        raise ValueError(
            f"proof_tokens has shape {list(proof_tokens.shape)}; expected [B, T] with T up to the "
            f"model's context={model.config.context}"
        )


def _save(contents: Contents, path: Path) -> None:
    save_file(contents.tensors, path, metadata=to_metadata(contents.manifest))


@torch.no_grad()
def _prove(packed: Transformer, *, snapshot: Transformer, tokens: Tensor, path: Path) -> None:
    expected, found = snapshot(tokens), packed(tokens)
    if torch.equal(found, expected):
        return
    error = float((found - expected).abs().max() / expected.abs().max())
    raise ValueError(
        f"{path} was not written: the packed logits differ from the trained model's by {error:.2e} "
        "of the largest logit, expected none; this is a defect of the packer or of a kernel"
    )
