"""Losses on answers against single tokens, and the warning where answers are learned by heart."""

import logging

import numpy as np
import pytest
import torch

from trilith.evolution import AnswerRows
from trilith.model import ModelConfig, build_model
from trilith.training.answer_loss import AnswerLosses, answer_losses, warn_of_overfitting


def rows(num_rows: int, seed: int) -> AnswerRows:
    rng = np.random.default_rng(seed)
    mask = rng.random((num_rows, 9)) < 0.4
    mask[:, 0] = False
    return AnswerRows(rng.integers(0, 37, (num_rows, 9)), mask, 0, 0, num_rows)


def test_the_losses_are_means_over_the_tokens_of_the_first_rows(toy: ModelConfig) -> None:
    torch.manual_seed(0)
    model = build_model(toy, None)
    seen, held_out = rows(70, 1), rows(3, 2)
    losses = answer_losses(model, seen=seen, held_out=held_out)
    assert model.training
    for loss, answers in ((losses.seen_nats, seen), (losses.held_out_nats, held_out)):
        nats = []
        for tokens, mask in list(zip(answers.tokens, answers.answer_mask, strict=True))[:64]:
            with torch.no_grad():
                log_probs = model(torch.from_numpy(tokens)[None])[0].double().log_softmax(-1)
            places = np.flatnonzero(mask)
            nats += [-float(log_probs[place - 1, int(tokens[place])]) for place in places]
        assert loss == pytest.approx(sum(nats) / len(nats), rel=1e-5)


def test_without_held_out_answers_there_is_one_loss(toy: ModelConfig) -> None:
    losses = answer_losses(build_model(toy, None), seen=rows(2, 1), held_out=rows(0, 2))
    assert list(losses.metrics()) == ["answers/train_loss_nats"]


@pytest.mark.parametrize(
    ("before", "after", "warns"),
    [
        (AnswerLosses(3.0, 3.0), AnswerLosses(0.4, 3.1), True),
        (AnswerLosses(3.0, 3.0), AnswerLosses(0.4, 2.9), False),
        (AnswerLosses(3.0, 3.0), AnswerLosses(0.6, 3.1), False),
        (AnswerLosses(3.0, None), AnswerLosses(0.4, None), False),
    ],
)
def test_answers_learned_by_heart_are_said(
    before: AnswerLosses, after: AnswerLosses, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    alerts: list[str] = []

    def alert(title: str, text: str) -> None:
        alerts.append(f"{title}: {text}")

    with caplog.at_level(logging.WARNING):
        warn_of_overfitting("toy", before, after, alert=alert)
    assert len(alerts) == len(caplog.records) == warns
    if warns:
        assert alerts[0].startswith("toy: overfitting: the loss on trained answers is 0.40 nats")
        assert "rose from 3.00 to 3.10" in alerts[0]
