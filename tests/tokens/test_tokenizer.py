"""Text comes back exactly, whatever it is; special tokens are ids and never text."""

import random
from pathlib import Path

import pytest
import sentencepiece

from trilith.tokens import SPECIAL_IDS, StreamDecoder, Tokenizer

DATA = Path(__file__).parents[2] / ".." / "shared" / "data" / "text"

ODD_TEXTS = [
    "",
    " ",
    "  two  spaces   three ",
    "\t\ttabs\t \t",
    "\n",
    "\n\n\n",
    "\r\n and \r alone",
    "\n\n    if x:\n        return\n     five\n",
    "\u65e5\u672c\u8a9e \u4e2d\u6587 \ud55c\uad6d\uc5b4",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea e\u0301 \u00e9",
    "\0",
    "a\0b\0\0",
    "".join(map(chr, range(1, 32))) + "\x7f\x85\xa0\u2028\u2029\ufeff\ufffd\ufffe",
    "\u2581",
    " \u2581 \u2581\u2581a\u2581",
    "\u2585 \u2047 \u2582",
    "</s><s><unk><pad><|user|> hi <|assistant|><|end|>",
    "<0x0A><0xE2><0x96><0x81>",
    "12345 1 22 333",
    "x" * 20_000,
    "\U0010ffff",
]


def random_text(rng: random.Random) -> str:
    ranges = [(0, 128), (32, 48), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x110000)]
    ranges += [(0x2580, 0x2586), (9, 14)]
    pieces = ["\u2581", "    ", "\n    ", "<|end|>", "</s>", " return", "self."]
    characters = []
    for _ in range(rng.randrange(60)):
        if rng.random() < 0.3:
            characters.append(rng.choice(pieces))
        else:
            characters.append(chr(rng.randrange(*rng.choice(ranges))))
    return "".join(characters)


@pytest.mark.parametrize("text", ODD_TEXTS, ids=range(len(ODD_TEXTS)))
def test_odd_text_comes_back_exactly(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_random_text_comes_back_exactly_and_as_a_stream(tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    for _ in range(1500):
        text = random_text(rng)
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        stream = StreamDecoder(tokenizer)
        assert "".join([*map(stream.push, ids), stream.flush()]) == text
        assert not set(ids) & set(SPECIAL_IDS.values())


def test_a_batch_encodes_as_one_by_one(tokenizer: Tokenizer, texts: list[str]) -> None:
    every = [*texts, *ODD_TEXTS]
    expected = [tokenizer.encode(text) for text in every]
    assert tokenizer.encode_batch(every) == expected
    assert tokenizer.encode_batch(every, num_threads=2) == expected
    assert tokenizer.encode_batch([]) == []


def test_ordinary_text_has_the_ids_that_sentencepiece_gives(
    tokenizer: Tokenizer, texts: list[str]
) -> None:
    plain = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model_bytes)
    for text in texts:
        if "\u2581" not in text:
            assert tokenizer.encode(text) == plain.encode(text)
            assert tokenizer.decode(plain.encode(text)) == plain.decode(plain.encode(text))


def test_line_breaks_with_indentation_are_single_tokens(tokenizer: Tokenizer) -> None:
    for text in ("\n", "\n    ", "\n        ", "\n            ", "\n\n    ", "    "):
        assert len(tokenizer.encode(text)) == 1, repr(text)


def test_digits_stand_alone(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode("90210")) == 5


def test_special_tokens_have_their_frozen_ids_and_no_text(tokenizer: Tokenizer) -> None:
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 1, 2, 3)
    assert (tokenizer.user_id, tokenizer.assistant_id, tokenizer.end_id) == (4, 5, 6)
    assert {tokenizer.piece(token): token for token in range(7)} == SPECIAL_IDS
    assert tokenizer.decode(
        [1, *tokenizer.encode("a"), 4, 5, 6, 3, *tokenizer.encode(" b"), 2]
    ) == ("a b")
    assert tokenizer.decode([0]) == "\ufffd"


def test_a_stream_holds_back_a_character_until_it_is_whole(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("\U0001f680")
    assert len(ids) == 4
    stream = StreamDecoder(tokenizer)
    assert [stream.push(token) for token in ids] == ["", "", "", "\U0001f680"]
    assert stream.flush() == ""


def test_a_broken_character_becomes_a_replacement_in_both_ways(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("\U0001f680")
    for broken in (ids[:2], [ids[1], *tokenizer.encode("a")], [ids[0], ids[0], *ids]):
        stream = StreamDecoder(tokenizer)
        streamed = "".join([*map(stream.push, broken), stream.flush()])
        assert streamed == tokenizer.decode(broken)
        assert "\ufffd" in streamed


def test_any_ids_decode_the_same_at_once_and_as_a_stream(tokenizer: Tokenizer) -> None:
    rng = random.Random(1)
    for _ in range(300):
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(20)]
        stream = StreamDecoder(tokenizer)
        assert "".join([*map(stream.push, ids), stream.flush()]) == tokenizer.decode(ids)


def test_a_lone_surrogate_is_an_error_that_says_where(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"lone surrogate '\\ud83d' at character 2"):
        tokenizer.encode("ab\ud83d")


@pytest.mark.parametrize("token", [-1, 400, 10**9])
def test_an_id_of_another_vocabulary_is_an_error(tokenizer: Tokenizer, token: int) -> None:
    with pytest.raises(ValueError, match=rf"id {token} is not in 0\.\.399"):
        tokenizer.decode([token])


def test_a_tokenizer_is_the_same_from_file_and_from_bytes(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(tokenizer.model_bytes)
    for other in (Tokenizer.load(path), Tokenizer.from_bytes(tokenizer.model_bytes)):
        assert other.sha256 == tokenizer.sha256
        assert other.vocab_size == tokenizer.vocab_size == 400
        assert other.encode("return self.x") == tokenizer.encode("return self.x")


def test_a_missing_tokenizer_names_the_stage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="tokenize makes it"):
        Tokenizer.load(tmp_path / "tokenizer.model")


@pytest.mark.parametrize("content", [b"", b"not a model", b"\0" * 1000])
def test_a_damaged_tokenizer_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer\.model .*run tokenize"):
        Tokenizer.load(path)


def test_a_tokenizer_that_cannot_spell_every_text_is_refused(
    tmp_path: Path, texts: list[str]
) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts[:20]),
        model_prefix=str(tmp_path / "foreign"),
        vocab_size=120,
        model_type="bpe",
        minloglevel=2,
    )
    with pytest.raises(ValueError, match=r"foreign\.model has no byte pieces"):
        Tokenizer.load(tmp_path / "foreign.model")


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared texts are not on this machine")
def test_real_texts_come_back_exactly_with_their_marks_and_carriage_returns(
    tokenizer: Tokenizer,
) -> None:
    texts = [
        path.read_bytes()[:60_000].decode("utf-8", "ignore")
        for folder in ("novels", "udhr")
        for path in sorted((DATA / folder).rglob("*.txt"))[:25]
    ]
    assert any("\r\n" in text for text in texts)
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert tokenizer.decode(ids) == text
