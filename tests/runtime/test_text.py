"""Stop strings and decoding, cut at every possible place."""

import itertools

import pytest

from trilith.runtime import StopCutter, until_stop_string


def _splits(text: str) -> list[list[str]]:
    cuts = itertools.product([False, True], repeat=len(text) - 1)
    pieces = []
    for cut in cuts:
        parts = [text[0]]
        for letter, new in zip(text[1:], cut, strict=True):
            if new:
                parts.append(letter)
            else:
                parts[-1] += letter
        pieces.append(parts)
    return pieces


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("hello world", [], "hello world"),
        ("hello world", ["lo w"], "hel"),
        ("hello world", ["wo", "ll"], "he"),
        ("aaabaaac", ["aac"], "aaaba"),
        ("hello", ["hello"], ""),
        ("hello", ["hellos", "x"], "hello"),
        ("ababac", ["abac"], "ab"),
    ],
)
def test_text_ends_before_the_first_stop_string_however_it_is_cut(
    text: str, stops: list[str], expected: str
) -> None:
    for pieces in _splits(text):
        assert "".join(until_stop_string(pieces, stop_strings=stops)) == expected


def test_text_that_cannot_begin_a_stop_string_is_handed_on_at_once() -> None:
    stream = until_stop_string(iter(["abc", "d<", "x"]), stop_strings=["<end>"])
    assert list(stream) == ["abc", "d", "<x"]


def test_nothing_is_drawn_after_a_stop_string() -> None:
    source = iter(["a", "STOP", "never"])
    assert list(until_stop_string(source, stop_strings=["STOP"])) == ["a"]
    assert list(source) == ["never"]


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="stop string is empty"):
        until_stop_string(["a"], stop_strings=[""])


def test_a_cutter_hands_on_what_is_certain_and_says_when_it_cut() -> None:
    cutter = StopCutter(["<end>"])
    assert [cutter.push(piece) for piece in ("ab<", "en", "x<e")] == ["ab", "", "<enx"]
    assert not cutter.has_cut
    assert (cutter.push("nd>more"), cutter.has_cut, cutter.flush()) == ("", True, "")


def test_a_text_that_ends_inside_a_stop_string_keeps_its_end() -> None:
    cutter = StopCutter(["<end>"])
    assert cutter.push("ab<en") + cutter.flush() == "ab<en"
    assert not cutter.has_cut
