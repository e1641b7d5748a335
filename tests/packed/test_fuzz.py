"""Ten thousand ways to damage a packed file: the engine refuses each, or nothing at all changes."""

import copy
import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from tests.packed.conftest import TERNARY
from torch import Tensor

from trilith.packed import measure
from trilith.quant import QuantConfig
from trilith.runtime import Engine

# Of each kind.
NUM_DAMAGED = 1450
NUM_FORGED = 220
ODD_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 3, 24, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan")),
    *("", "x", "base3", "bits3", "prime7", "norms", "codes", "norm.weight", "float32", "\ud800"),
    *("F8_E4M3", "F4", "C64", "BOOL", "U64", "uint8", "tokenizer.model", "head.scale"),
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


GROUPS = QuantConfig("prime7", "least_squares", "group", 8, 8)
ROWS = QuantConfig("ternary", "absmean", "row", None, 8)
# Every codec, every precision of rows and every granularity of scales.
KINDS: dict[str, tuple[QuantConfig | None, dict[str, Any]]] = {
    "base3": (ROWS, {"embedding": "int8"}),
    "bits2": (TERNARY, {"codec": "bits2", "embedding": "int4", "head": "int3", "group_size": 8}),
    "bits3": (GROUPS, {"embedding": "int3", "head": "int4", "group_size": 24}),
    "planes": (replace(GROUPS, grid="planes"), {"embedding": "f32", "tied_head": True}),
    "bits1": (replace(TERNARY, grid="sign", activation_bits=None), {"embedding": "bf16"}),
    "dense": (None, {"embedding": "bf16", "qkv_bias": True}),
}


@pytest.fixture(autouse=True)
def _one_thread_and_8_gb(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A forged context must be too long for the machine, however large that is."""
    monkeypatch.setattr("trilith.runtime.room.host_memory_bytes", lambda: 8 * 10**9)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=KINDS)
def content(pack: Any, request: pytest.FixtureRequest) -> bytes:
    quant, how = KINDS[request.param]
    return pack(quant, **{"tied_head": False, "num_layers": 1} | how).path.read_bytes()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory, where the system has such: half the time went into writing files."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as found:
        yield Path(found)


def _logits(engine: Engine, tokens: Tensor) -> Tensor:
    """Run prompts as a user does, by the native kernels where there are any."""
    cache = engine.new_cache(batch_size=len(tokens), capacity=tokens.shape[1])
    return engine.prefill(tokens, cache=cache)


@pytest.mark.slow
def test_no_damage_goes_unnoticed(content: bytes, folder: Path, proof_tokens: Tensor) -> None:
    path = folder / "damaged.safetensors"
    path.write_bytes(content)
    expected = _logits(Engine.load(path), proof_tokens)
    draw = random.Random(0)
    num_accepted = 0
    for trial in range(NUM_DAMAGED):
        damage = DAMAGES[trial % len(DAMAGES)]
        path.write_bytes(damage(draw, content))
        try:
            engine = Engine.load(path)
        except ValueError as error:
            assert "damaged.safetensors" in str(error), damage.__name__
            continue
        num_accepted += 1
        assert torch.equal(_logits(engine, proof_tokens), expected), (trial, damage.__name__)
    # What is accepted must be a change that means nothing, such as another blank in the JSON.
    assert num_accepted < NUM_DAMAGED // 40


@pytest.mark.slow
def test_no_forged_manifest_is_more_than_an_error(
    content: bytes, folder: Path, proof_tokens: Tensor
) -> None:
    path = folder / "forged.safetensors"
    draw = random.Random(1)
    num_accepted = 0
    for _ in range(NUM_FORGED):
        path.write_bytes(_forge(draw, content))
        try:
            engine = Engine.load(path)
            measure(engine.file)
        except ValueError as error:
            assert "forged.safetensors" in str(error)
            continue
        num_accepted += 1
        if engine.config.context >= proof_tokens.shape[1]:
            assert _logits(engine, proof_tokens).shape == (len(proof_tokens), 37)
    # The provenance, and what the shape leaves free, may say anything.
    assert num_accepted < NUM_FORGED // 4
