"""A tokenizer.bin, turned into a SentencePiece model, encodes as run.c does."""

import itertools
import random
from pathlib import Path

import pytest
from tests.imports.making import TEXT, sentencepiece_model, tokenizer_bin

from trilith.imports.llama2c_tokenizer import find_tokenizer, read_pieces, to_sentencepiece
from trilith.tokens import StreamDecoder, Tokenizer

TEXTS = [
    TEXT,
    "Once upon a time",
    "  two  spaces   three ",
    "\n\n tabs\t and caf\u00e9, \u65e5\u672c \U0001f600!",
    "She",
    " ",
    "",
]


def greedy_merges(pieces: dict[bytes, tuple[int, float]], text: str) -> list[int]:
    """run.c: a space in front, characters or their bytes, then the best pair until none is left."""
    if not text:
        return []
    names = {token: piece for piece, (token, _) in pieces.items()}
    ids = []
    for character in f" {text}":
        content = character.encode()
        ids += [pieces[content][0]] if content in pieces else [byte + 3 for byte in content]
    while True:
        pairs = [names[a] + names[b] for a, b in itertools.pairwise(ids)]
        found = [(pieces[pair][1], -place) for place, pair in enumerate(pairs) if pair in pieces]
        if not found:
            return ids
        place = -max(found)[1]
        ids[place : place + 2] = [pieces[pairs[place]][0]]


@pytest.fixture(scope="module")
def content() -> bytes:
    return tokenizer_bin(sentencepiece_model())


@pytest.fixture(scope="module")
def tokenizer(content: bytes) -> Tokenizer:
    pieces = read_pieces(content)
    assert pieces is not None
    return Tokenizer.from_bytes(to_sentencepiece(pieces))


def test_ids_are_those_of_greedy_merges(content: bytes, tokenizer: Tokenizer) -> None:
    pieces = {piece.text: (n, piece.score) for n, piece in enumerate(read_pieces(content) or [])}
    rng = random.Random(0)
    words = TEXT.split()
    shuffled = [" ".join(rng.choices(words, k=9)) for _ in range(50)]
    for text in [*TEXTS, *shuffled]:
        assert tokenizer.encode(text) == greedy_merges(pieces, text), text


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_exactly(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    stream = StreamDecoder(tokenizer)
    streamed = "".join([*map(stream.push, ids), stream.flush()])
    assert streamed == (f" {text}" if text else "")


def test_control_bytes_stand_in_for_the_marks_and_no_text_can_forge_them(
    tokenizer: Tokenizer,
) -> None:
    marks = {"<unk>": 0, "<s>": 1, "</s>": 2}
    stand_ins = {"<pad>": 3, "<|user|>": 4, "<|assistant|>": 5, "<|end|>": 6}
    assert tokenizer.special_ids == marks | stand_ins
    assert tokenizer.is_imported
    for text in ("</s><s> <|user|>", "a\0b\x01\x02\x03c", "<0x01>"):
        ids = tokenizer.encode(text)
        assert not set(ids) & set(tokenizer.special_ids.values())
    assert tokenizer.decode(tokenizer.encode("a\0b")) == "a\ufffdb"
    assert tokenizer.decode([1, 4, *tokenizer.encode("hi"), 6, 2]) == "hi"


def test_a_batch_encodes_as_one_by_one(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]


def test_the_same_pieces_give_the_same_bytes(content: bytes) -> None:
    assert to_sentencepiece(read_pieces(content)) == to_sentencepiece(read_pieces(content))


@pytest.mark.parametrize("damage", [b"", b"\0" * 3, b"\0" * 9])
def test_what_is_no_tokenizer_bin_has_no_pieces(content: bytes, damage: bytes) -> None:
    assert read_pieces(damage) is None
    assert read_pieces(content[:-1]) is None


def test_a_piece_that_is_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(content.replace(b"<0x41>", b"<0x4\xff>"))
    with pytest.raises(ValueError, match=r"a piece is not UTF-8"):
        find_tokenizer(tmp_path / "model.bin", vocab_size=300, given=path)
