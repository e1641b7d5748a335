"""Real checkpoints, packed with a float32 embedding, against published text and measured losses.

MEASURED.json holds both; its losses are those of an independent numpy program.
"""

import json
import math
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trilith.imports import open_source
from trilith.model import KVCache
from trilith.packed import PackConfig
from trilith.packed.shelf import drawn_proof_tokens, pack_checkpoint
from trilith.runtime import Engine, GenerateConfig, SamplingConfig
from trilith.tokens import Tokenizer

DATA = Path(__file__).parents[3] / "shared/data"
MODELS = DATA / "models"
TOKENIZER = MODELS / "stories260K/tok512.bin"
FILES = {
    "bitllama-1M": MODELS / "bitllama-1M/bit_model.bin",
    "stories260K": MODELS / "stories260K/stories260K.bin",
}
# Four digits are published. Each order of float32 sums rounds some int8 activations another way,
# which moves bitllama's loss by 2e-4; bfloat16 projections move that of stories260K by 2e-5.
TOLERANCE = 1e-3
pytestmark = pytest.mark.skipif(
    not (MODELS / "MEASURED.json").is_file(), reason="the shared models are not here"
)
each_model = pytest.mark.parametrize("name", FILES)
each_path = pytest.mark.parametrize("kernels", ["auto", "torch"])


class Packed(NamedTuple):
    """A model in its packed file, and what is known of it."""

    path: Path
    tokenizer: Tokenizer
    measured: dict[str, Any]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Pack a model of FILES, once."""

    @cache
    def pack(name: str) -> Packed:
        source = open_source(FILES[name], tokenizer=TOKENIZER)
        assert source.tokenizer is not None
        path = tmp_path_factory.mktemp(name) / "packed.safetensors"
        tokenizer = Tokenizer.from_bytes(source.tokenizer)
        pack_checkpoint(
            source.load(),
            path=path,
            config=PackConfig("smallest", "f32"),
            tokenizer=tokenizer,
            proof_tokens=drawn_proof_tokens(source.model),
        )
        measured = json.loads((MODELS / "MEASURED.json").read_text())["models"][name]
        return Packed(path, tokenizer, measured)

    return pack


@each_path
@each_model
def test_the_engine_writes_the_published_text(
    name: str, kernels: str, packed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRILITH_KERNELS", kernels)
    path, _, measured = packed(name)
    greedy = GenerateConfig(48, (), SamplingConfig(0.0, None, None, 1.0, 0))
    found = list(Engine.load(path).generate(measured["prompt_ids"], config=greedy))
    assert found == measured["greedy_ids_48"]


@each_path
@each_model
@torch.inference_mode()
def test_the_packed_file_has_the_measured_loss(
    name: str, kernels: str, packed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRILITH_KERNELS", kernels)
    model = packed(name)
    engine = Engine.load(model.path)
    stories = _stories(model.tokenizer, context=engine.config.context)
    losses = [_loss(engine.model(ids[None, :-1])[0], ids[1:]) for ids in stories]
    _require_measured(sum(losses), stories, model)


@each_model
@torch.inference_mode()
def test_decoding_in_the_native_kernels_has_the_measured_loss(name: str, packed: Any) -> None:
    model = packed(name)
    engine = Engine.load(model.path)
    if engine.decoder is None:
        pytest.skip("no native kernels run here")
    stories = _stories(model.tokenizer, context=engine.config.context)
    caches = [engine.new_cache(batch_size=1, capacity=len(ids) - 1) for ids in stories]
    total = 0.0
    for place in range(max(map(len, stories)) - 1):
        running = [n for n, ids in enumerate(stories) if place + 1 < len(ids)]
        tokens = torch.stack([stories[n][place] for n in running])
        following = torch.stack([stories[n][place + 1] for n in running])
        used: list[KVCache] = [caches[n] for n in running]  # type: ignore[misc]
        total += _loss(engine.decode_together(tokens, caches=used), following)
    _require_measured(total, stories, model)


def _stories(tokenizer: Tokenizer, *, context: int) -> list[Tensor]:
    text = (DATA / "text/tinystories/train.txt").read_text()
    parts = [part.strip() for part in text.split("<|endoftext|>")][:40]
    ids = [[tokenizer.bos_id, *tokenizer.encode(part)][:context] for part in parts]
    return [torch.tensor(each) for each in ids]


def _loss(logits: Tensor, following: Tensor) -> float:
    return float(F.cross_entropy(logits.double(), following, reduction="sum"))


def _require_measured(total_nats: float, stories: list[Tensor], model: Packed) -> None:
    expected = model.measured["share train first 40"]
    scored = [token for ids in stories for token in ids[1:].tolist()]
    num_bytes = sum(len(model.tokenizer.token_bytes(token)) for token in scored)
    assert len(scored) == expected["tokens"]
    loss_nats, bits_per_byte = total_nats / len(scored), total_nats / math.log(2) / num_bytes
    assert loss_nats == pytest.approx(expected["nll_per_token"], abs=TOLERANCE)
    assert bits_per_byte == pytest.approx(expected["bits_per_byte"], abs=TOLERANCE)
