"""A small corpus, the settings to tokenize it, and a tokenizer trained on it."""

import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trilith.tokens import Tokenizer, TokenizerConfig, train_tokenizer
from trilith.tokens.tokenization import tokenize_corpus

_NAMES = ("value", "index", "count", "result", "buffer", "path", "total", "first", "line", "key")


def _module(seed: int) -> str:
    rng = random.Random(seed)
    lines = [f'"""Module number {seed}."""\n']
    for _ in range(rng.randrange(5, 15)):
        one, two = rng.sample(_NAMES, 2)
        lines.append(
            f"\ndef {one}_{two}(self, {one}, {two}):\n"
            f"    if {one} is not None:\n"
            f"        for {two} in {one}:\n"
            f"            return {two} + {rng.randrange(1000)}\n"
            f"    # the {one} of the {two}\n\n"
            f"    return self.{two}\n"
        )
    return "".join(lines)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    odd = [
        "a    b        c\n" * 40,
        "tabs\there\n" * 4,
        "\u65e5\u672c\u8a9e\u3068\U0001f600\n" * 4,
        "a\0b \u2581 c\n",
    ]
    return [_module(seed) for seed in range(60)] + odd


@pytest.fixture(scope="session")
def config() -> TokenizerConfig:
    return TokenizerConfig(
        vocab_size=400,
        character_coverage=0.999,
        max_piece_length=16,
        fixed_pieces=("\n    ", "\n        ", "\n            ", "\n\n    "),
        training_bytes=1_000_000,
        num_threads=1,
    )


@pytest.fixture(scope="session")
def tokenizer(texts: list[str], config: TokenizerConfig) -> Tokenizer:
    return train_tokenizer(texts, config)


@pytest.fixture(scope="session")
def write_documents() -> Callable[[Path, list[tuple[str, str, str]]], Path]:
    def write(path: Path, rows: list[tuple[str, str, str]]) -> Path:
        columns = dict(
            zip(("id", "text", "split"), map(list, zip(*rows, strict=True)), strict=True)
        )
        pq.write_table(pa.table(columns | {"score": [0.5] * len(rows)}), path)
        return path

    return write


@pytest.fixture(scope="session")
def rows(texts: list[str]) -> list[tuple[str, str, str]]:
    """Documents as (id, text, split), the ids not in the order of the rows."""
    splits = ["train", "train", "train", "validation", "test"]
    return [
        (f"{(number * 7919) % 1000:064x}", text, splits[number % 5])
        for number, text in enumerate(texts)
    ]


@pytest.fixture
def tokens_dir(
    tmp_path: Path,
    rows: list[tuple[str, str, str]],
    config: TokenizerConfig,
    write_documents: Callable[[Path, list[tuple[str, str, str]]], Path],
) -> Path:
    documents = write_documents(tmp_path / "documents.parquet", rows)
    tokenize_corpus(config, documents=documents, out_dir=tmp_path / "tokens")
    return tmp_path / "tokens"
