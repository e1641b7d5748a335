"""llama.cpp itself runs the GGUF files: the same ids, the same greedy text, the same perplexity.

The models know one text by heart, so that their choices are clear. llama.cpp rounds activations to
int8 by 256 features, ours by token: logits are near each other, not equal.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.exports.conftest import WIDE, pack
from tests.imports.making import TEXT
from torch.nn import functional as F

from trilith.model import ModelConfig, build_model
from trilith.packed import PackedFile, load_model
from trilith.quant import QuantConfig
from trilith.runtime import Engine, GenerateConfig, SamplingConfig
from trilith.tokens import Tokenizer, TokenizerConfig, train_tokenizer

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
pytest.importorskip("gguf", reason="the extra `export` is not installed")
from trilith.exports.gguf_file import write_gguf  # noqa: E402

TERNARY = QuantConfig("ternary", "least_squares", "row", None, 8)
SHAPES = {
    "llama": WIDE,
    "qwen3": replace(WIDE, qk_norm=True),
    "bitnet": replace(WIDE, sub_norm=True),
}
NUM_STEPS = 60
NUM_NEW = 100
CODE = "for line in lines:\n        if line:\n    \tprint( line )\n"


def _tokenizer() -> bytes:
    config = TokenizerConfig(300, 1.0, 8, ("\n", "    ", "        "), 10**6, 1)
    return train_tokenizer([TEXT, CODE] * 10, config).model_bytes


def _learned(shape: ModelConfig, path: Path) -> PackedFile:
    """Teach a model one text by heart and pack it."""
    torch.manual_seed(0)
    content = _tokenizer()
    tokenizer = Tokenizer.from_bytes(content)
    ids = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(TEXT)]])[:, :129]
    model = build_model(replace(shape, num_layers=1, context=160), TERNARY).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    for _ in range(NUM_STEPS):
        loss = F.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return pack(model.eval(), path, tokenizer=content)


@pytest.fixture(scope="module", params=SHAPES)
def learned(request: Any, tmp_path_factory: pytest.TempPathFactory) -> PackedFile:
    folder = tmp_path_factory.mktemp(request.param)
    return _learned(SHAPES[request.param], folder / "model.safetensors")


@pytest.fixture(params=["tq1_0", "tq2_0", "f16"])
def theirs(request: Any, learned: PackedFile, tmp_path: Path) -> Iterator[Any]:
    path = tmp_path / "model.gguf"
    write_gguf(learned, path, weights=request.param)
    # Keys and values in float32, as ours.
    options = {"n_ctx": 160, "n_threads": 1, "n_threads_batch": 1, "type_k": 0, "type_v": 0}
    yield llama_cpp.Llama(str(path), logits_all=True, verbose=False, n_gpu_layers=0, **options)


@pytest.mark.slow
def test_greedy_text_is_the_same(learned: PackedFile, theirs: Any) -> None:
    tokenizer = Tokenizer.from_bytes(learned.tokenizer_bytes)
    greedy = GenerateConfig(NUM_NEW, (), SamplingConfig(0.0, None, None, 1.0, 0))
    expected = list(Engine.load(learned.path).generate([tokenizer.bos_id], config=greedy))
    ids = [tokenizer.bos_id]
    theirs.reset()
    for _ in range(NUM_NEW):
        theirs.eval(ids[-1:])
        ids.append(int(np.argmax(theirs.scores[theirs.n_tokens - 1])))
    assert ids[1:] == expected
    assert len(set(expected)) > 20


@pytest.mark.slow
@torch.no_grad()
def test_perplexity_is_within_a_hundredth(learned: PackedFile, theirs: Any) -> None:
    tokenizer = Tokenizer.from_bytes(learned.tokenizer_bytes)
    for text in (TEXT, TEXT[40:] + TEXT[:40]):
        ids = [tokenizer.bos_id, *tokenizer.encode(text)][:140]
        ours = load_model(learned.path)(torch.tensor([ids[:-1]]))[0]
        theirs.reset()
        theirs.eval(ids[:-1])
        found = torch.from_numpy(theirs.scores[: len(ids) - 1].copy())
        after = torch.tensor(ids[1:])
        difference = F.cross_entropy(found, after) - F.cross_entropy(ours, after)
        assert abs(float(difference.exp()) - 1) < 0.01


def test_the_tokenizer_gives_the_same_ids(learned: PackedFile, theirs: Any) -> None:
    tokenizer = Tokenizer.from_bytes(learned.tokenizer_bytes)
    for text in (TEXT, CODE, " leading", "für 木 \U0001f600"):
        expected = [tokenizer.bos_id, *tokenizer.encode(text)]
        assert theirs.tokenize(text.encode(), add_bos=True, special=False) == expected
