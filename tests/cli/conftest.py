"""A packed model with a real tokenizer, as the command line meets it."""

from pathlib import Path

import pytest
from tests.toy_packed import pack_toy


@pytest.fixture(scope="session")
def packed_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ternary toy model with a context of 64 tokens."""
    return pack_toy(tmp_path_factory.mktemp("packed") / "toy.safetensors", context=64)
