"""A packed model whose context is long enough for answers that take a while."""

from pathlib import Path

import pytest
from tests.serving.watched import WatchedEngine
from tests.toy_packed import pack_toy

from trilith.tokens import Tokenizer


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> WatchedEngine:
    """A ternary toy model with a context of 20,000 tokens."""
    folder: Path = tmp_path_factory.mktemp("packed")
    return WatchedEngine.load(pack_toy(folder / "toy.safetensors", context=20_000))


@pytest.fixture(scope="session")
def tokenizer(engine: WatchedEngine) -> Tokenizer:
    """Its tokenizer."""
    return Tokenizer.from_bytes(engine.file.tokenizer_bytes)
