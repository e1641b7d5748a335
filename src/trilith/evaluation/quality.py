"""Quality of a model on held-out tokens: loss, agreement with a reference, loss on answers.

Axes: B sequences, T tokens, V vocabulary.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from trilith.model import Transformer

_BATCH_SIZE = 16


class TextQuality(NamedTuple):
    """Means over all scored tokens; KL is that of the reference to the model, in nats."""

    loss_nats: float
    top1_agreement: float
    kl_nats: float
    num_tokens: int


class HeldOut(NamedTuple):
    """Test tokens [N], the bytes of their text, and the window that is scored at once."""

    tokens: np.ndarray
    num_bytes: int
    context: int


def bits_per_byte(loss_nats: float, *, num_tokens: int, num_bytes: int) -> float:
    """Turn a loss per token into bits per byte of text, which any two tokenizers share."""
    return loss_nats / math.log(2) * num_tokens / num_bytes


@torch.no_grad()
def score_text(
    model: Transformer, *, reference: Transformer, held_out: HeldOut, name: str
) -> TextQuality:
    """Score every test token once, in windows that do not overlap.

    Args:
        model: scored.
        reference: its predictions are what agreement and KL compare with.
        held_out: what is scored; the first token of a window has no context but the one before.
        name: of the model, for the progress bar.
    """
    total_loss = agreement = kl = 0.0
    num_tokens = 0
    batches = list(_windows(held_out))
    for inputs_BT, targets_BT in tqdm(batches, desc=f"evaluate {name}", leave=False, disable=None):
        log_probs = F.log_softmax(model(inputs_BT).float(), dim=-1).flatten(0, 1)
        expected = F.log_softmax(reference(inputs_BT).float(), dim=-1).flatten(0, 1)
        total_loss += float(F.nll_loss(log_probs, targets_BT.flatten(), reduction="sum"))
        agreement += float((log_probs.argmax(-1) == expected.argmax(-1)).sum())
        kl += float(F.kl_div(log_probs, expected, log_target=True, reduction="sum"))
        num_tokens += targets_BT.numel()
    return TextQuality(total_loss / num_tokens, agreement / num_tokens, kl / num_tokens, num_tokens)


@torch.no_grad()
def score_answers(model: Transformer, tokens: np.ndarray, answer_mask: np.ndarray) -> float:
    """Mean loss in nats over the tokens of held-out answers.

    Args:
        model: scored.
        tokens: [N, length].
        answer_mask: [N, length], True on the tokens that count.
    """
    total = 0.0
    for start in range(0, len(tokens), 4 * _BATCH_SIZE):
        rows = torch.from_numpy(tokens[start : start + 4 * _BATCH_SIZE]).long()
        counted = torch.from_numpy(answer_mask[start : start + 4 * _BATCH_SIZE])[:, 1:]
        logits = model(rows[:, :-1]).float()
        total += float(F.cross_entropy(logits[counted], rows[:, 1:][counted], reduction="sum"))
    return total / int(answer_mask[:, 1:].sum())


def _windows(held_out: HeldOut) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of equal windows, then the rest as one shorter window."""
    tokens = torch.from_numpy(held_out.tokens.astype(np.int64))
    context = held_out.context
    num_windows = (len(tokens) - 1) // context
    covered = num_windows * context
    inputs = tokens[:covered].view(-1, context)
    targets = tokens[1 : covered + 1].view(-1, context)
    yield from zip(inputs.split(_BATCH_SIZE), targets.split(_BATCH_SIZE), strict=True)
    if covered + 1 < len(tokens):
        yield tokens[None, covered:-1], tokens[None, covered + 1 :]
