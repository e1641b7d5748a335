"""Training is repeatable, sees long documents, and says when the vocabulary does not fit."""

from dataclasses import replace

import pytest

from trilith.tokens import Tokenizer, TokenizerConfig, train_tokenizer


def test_two_trainings_give_the_same_bytes(
    texts: list[str], config: TokenizerConfig, tokenizer: Tokenizer
) -> None:
    assert train_tokenizer(texts, config).model_bytes == tokenizer.model_bytes


def test_more_threads_learn_the_same_pieces(
    texts: list[str], config: TokenizerConfig, tokenizer: Tokenizer
) -> None:
    other = train_tokenizer(texts, replace(config, num_threads=2))
    pieces = [tokenizer.piece(token) for token in range(tokenizer.vocab_size)]
    assert [other.piece(token) for token in range(other.vocab_size)] == pieces


def test_a_document_on_one_very_long_line_is_learned_from(
    texts: list[str], config: TokenizerConfig
) -> None:
    line = "quixotic zephyr " * 20_000
    tokenizer = train_tokenizer([*texts, line], config)
    assert len(tokenizer.encode("quixotic zephyr quixotic zephyr")) <= 4


def test_the_fixed_pieces_decide_what_a_line_break_holds(
    texts: list[str], config: TokenizerConfig
) -> None:
    without = train_tokenizer(texts, replace(config, fixed_pieces=()))
    assert len(without.encode("\n    return")) > len(without.encode("    return"))
    assert without.decode(without.encode("\n    return")) == "\n    return"


def test_a_vocabulary_too_large_for_the_text_is_an_error(config: TokenizerConfig) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.vocab_size=400 does not fit .*too high"):
        train_tokenizer(["a b c\n"], config)


def test_a_vocabulary_too_small_for_the_characters_is_an_error(config: TokenizerConfig) -> None:
    many = "".join(map(chr, range(0x4E00, 0x4E00 + 500)))
    full = replace(config, character_coverage=1.0)
    with pytest.raises(ValueError, match=r"tokenizer\.vocab_size=400 does not fit"):
        train_tokenizer([many], full)
