"""Real checkpoints against figures that an independent program measured (MEASURED.json)."""

import json
import math
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch.nn import functional as F

from trilith.imports import open_source
from trilith.model import Transformer
from trilith.tokens import Tokenizer

DATA = Path(__file__).parents[3] / "shared" / "data"
TOKENIZER = DATA / "models/stories260K/tok512.bin"
FILES = {
    "stories260K": DATA / "models/stories260K/stories260K.bin",
    "bitllama-1M": DATA / "models/bitllama-1M/bit_model.bin",
}
pytestmark = pytest.mark.skipif(
    not (DATA / "models/MEASURED.json").is_file(), reason="the shared models are not here"
)
each_model = pytest.mark.parametrize("name", FILES)


class Imported(NamedTuple):
    model: Transformer
    tokenizer: Tokenizer
    measured: dict[str, Any]


@cache
def imported(name: str) -> Imported:
    """Import a model with its tokenizer; its figures go along."""
    source = open_source(FILES[name], tokenizer=TOKENIZER)
    assert source.tokenizer is not None
    measured = json.loads((DATA / "models/MEASURED.json").read_text())["models"][name]
    return Imported(source.load().model, Tokenizer.from_bytes(source.tokenizer), measured)


@each_model
@torch.no_grad()
def test_greedy_text_is_the_published_one(name: str) -> None:
    model, tokenizer, measured = imported(name)
    ids = [tokenizer.bos_id, *tokenizer.encode(measured["prompt"])]
    assert ids == measured["prompt_ids"]
    for _ in measured["greedy_ids_48"]:
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    new = ids[len(measured["prompt_ids"]) :]
    assert new == measured["greedy_ids_48"]
    assert tokenizer.decode(ids) == measured["prompt"] + measured["greedy_text"].removeprefix(
        f" {measured['prompt']}"
    )


@each_model
@torch.no_grad()
def test_the_next_logits_are_the_measured_ones(name: str) -> None:
    model, _, measured = imported(name)
    found = model(torch.tensor([measured["prompt_ids"]]))[0, -1]
    for token, logit in measured["top5_next"]:
        # bitllama normalizes the head's input with an epsilon, 0.06 percent of its mean square.
        assert float(found[token]) == pytest.approx(logit, rel=8e-4, abs=1e-4)


@each_model
@torch.no_grad()
def test_the_loss_on_real_stories_is_the_measured_one(name: str) -> None:
    model, tokenizer, measured = imported(name)
    text = (DATA / "text/tinystories/train.txt").read_text()
    total = 0.0
    num_tokens = num_bytes = 0
    for story in [part.strip() for part in text.split("<|endoftext|>")][:40]:
        ids = [tokenizer.bos_id, *tokenizer.encode(story)][: model.config.context]
        logits = model(torch.tensor([ids[:-1]]))[0]
        total += float(F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum"))
        num_tokens += len(ids) - 1
        num_bytes += sum(len(tokenizer.token_bytes(token)) for token in ids[1:])
    expected = measured["share train first 40"]
    assert num_tokens == expected["tokens"]
    assert total / num_tokens == pytest.approx(expected["nll_per_token"], abs=1e-3)
    bits_per_byte = total / math.log(2) / num_bytes
    assert bits_per_byte == pytest.approx(expected["bits_per_byte"], abs=1e-3)


def test_both_forms_of_the_published_tokenizer_give_the_same_ids() -> None:
    published = Tokenizer.load(TOKENIZER.with_suffix(".model"))
    converted = imported("stories260K").tokenizer
    text = (DATA / "text/tinystories/train.txt").read_text()
    for story in text.split("<|endoftext|>")[:200]:
        # The published model squeezes spaces, run.c with tokenizer.bin does not.
        if "  " not in story:
            assert converted.encode(story.strip()) == published.encode(story.strip())
