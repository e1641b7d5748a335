"""Thousands of ways to damage a packed file: each is refused, or changes nothing at all."""

import copy
import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trilith.model import Transformer
from trilith.packed import build_packed_model, load_model, measure, read_packed
from trilith.quant import QuantConfig

NUM_DAMAGED = 8000
NUM_FORGED = 2000
ODD_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 3, 24, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan")),
    *("", "x", "base3", "bits3", "prime7", "norms", "codes", "norm.weight", "float32", "\ud800"),
    *([], [0], [-40, -24], [24], {}, {"x": 1}, [[[]]], "9" * 5000),
]
Damage = Callable[[random.Random, bytes], bytes]


def _header(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The JSON of a safetensors header, and the bytes of the tensors behind it."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def _joined(header: dict[str, Any], tensors: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + tensors


def _flip_a_bit(draw: random.Random, content: bytes) -> bytes:
    damaged = bytearray(content)
    damaged[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def _change_the_header(draw: random.Random, content: bytes) -> bytes:
    damaged = bytearray(content)
    end = 8 + int.from_bytes(content[:8], "little")
    damaged[draw.randrange(end)] = draw.randrange(256)
    return bytes(damaged)


def _overwrite_a_run(draw: random.Random, content: bytes) -> bytes:
    start, length = draw.randrange(len(content)), draw.randrange(1, 64)
    return content[:start] + draw.randbytes(length) + content[start + length :]


def _cut_off(draw: random.Random, content: bytes) -> bytes:
    return content[: draw.randrange(len(content))]


def _insert(draw: random.Random, content: bytes) -> bytes:
    place = draw.randrange(len(content) + 1)
    return content[:place] + draw.randbytes(draw.randrange(1, 40)) + content[place:]


def _delete(draw: random.Random, content: bytes) -> bytes:
    place = draw.randrange(len(content))
    return content[:place] + content[place + draw.randrange(1, 40) :]


def _repeat_a_part(draw: random.Random, content: bytes) -> bytes:
    start, place = draw.randrange(len(content)), draw.randrange(len(content))
    return content[:place] + content[start : start + draw.randrange(1, 200)] + content[place:]


def _swap_tensors(draw: random.Random, content: bytes) -> bytes:
    header, tensors = _header(content)
    first, second = draw.sample([name for name in header if name != "__metadata__"], 2)
    header[first], header[second] = header[second], header[first]
    return _joined(header, tensors)


def _edit_the_header(draw: random.Random, content: bytes) -> bytes:
    header, tensors = _header(content)
    _edit(draw, header)
    return _joined(header, tensors)


def _edit_the_manifest(draw: random.Random, content: bytes) -> bytes:
    header, tensors = _header(content)
    envelope = json.loads(header["__metadata__"]["trilith"])
    _edit(draw, envelope)
    header["__metadata__"]["trilith"] = json.dumps(envelope)
    return _joined(header, tensors)


DAMAGES: tuple[Damage, ...] = (
    _flip_a_bit,
    _change_the_header,
    _overwrite_a_run,
    _cut_off,
    _insert,
    _delete,
    _repeat_a_part,
    _swap_tensors,
    _edit_the_header,
    _edit_the_manifest,
)


def _forge(draw: random.Random, content: bytes) -> bytes:
    """Edit the manifest and make its hash right again, as somebody with our sources could."""
    header, tensors = _header(content)
    envelope = json.loads(header["__metadata__"]["trilith"])
    for _ in range(draw.randrange(1, 3)):
        _edit(draw, envelope["manifest"])
    body = json.dumps(envelope["manifest"], sort_keys=True, separators=(",", ":"))
    envelope["sha256"] = hashlib.sha256(body.encode()).hexdigest()
    header["__metadata__"]["trilith"] = json.dumps(envelope)
    return _joined(header, tensors)


def _edit(draw: random.Random, tree: dict[str, Any]) -> None:
    """Replace, remove or add something at a random place of nested objects and lists."""
    node: Any = tree
    while True:
        key = draw.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if not isinstance(node[key], dict | list) or not node[key] or draw.random() < 0.1:
            break
        node = node[key]
    kind = draw.randrange(8)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, dict):
        node["surprise"] = copy.deepcopy(draw.choice(ODD_VALUES))
    else:
        node[key] = copy.deepcopy(draw.choice(ODD_VALUES))


@pytest.fixture(params=["int8", "int3"])
def content(pack: Any, request: pytest.FixtureRequest) -> bytes:
    quant = QuantConfig("ternary", "absmean", "row", None, 8)
    rows = {"embedding": "int8"}
    if request.param == "int3":
        rows = {"embedding": "int3", "head": "int4", "group_size": 8}
    return pack(quant, **rows, tied_head=False, num_layers=1).path.read_bytes()


@torch.no_grad()
def _logits(model: Transformer, tokens: Tensor) -> Tensor:
    return model(tokens)


@pytest.mark.slow
def test_no_damage_goes_unnoticed(content: bytes, tmp_path: Path, proof_tokens: Tensor) -> None:
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    expected = _logits(load_model(path), proof_tokens)
    draw = random.Random(0)
    num_accepted = 0
    for trial in range(NUM_DAMAGED):
        damage = DAMAGES[trial % len(DAMAGES)]
        path.write_bytes(damage(draw, content))
        try:
            model = load_model(path)
        except ValueError as error:
            assert "damaged.safetensors" in str(error), damage.__name__
            continue
        num_accepted += 1
        assert torch.equal(_logits(model, proof_tokens), expected), (trial, damage.__name__)
    # What is accepted must be a change that means nothing, such as another blank in the JSON.
    assert num_accepted < NUM_DAMAGED // 50


@pytest.mark.slow
def test_no_forged_manifest_is_more_than_an_error(
    content: bytes, tmp_path: Path, proof_tokens: Tensor
) -> None:
    path = tmp_path / "forged.safetensors"
    draw = random.Random(1)
    num_accepted = 0
    for _ in range(NUM_FORGED):
        path.write_bytes(_forge(draw, content))
        try:
            file = read_packed(path)
            measure(file)
            model = build_packed_model(file)
        except ValueError as error:
            assert "forged.safetensors" in str(error)
            continue
        num_accepted += 1
        assert _logits(model, proof_tokens).shape == (*proof_tokens.shape, 37)
    # The provenance, and what the shape leaves free, may say anything.
    assert num_accepted < NUM_FORGED // 4
