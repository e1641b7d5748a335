"""`trilith chat`: lines in, answers out, a conversation that is kept, forgotten and cut."""

import io
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.toy_packed import pack_toy
from torch import Tensor

from trilith.cli import main
from trilith.model import CacheConfig
from trilith.packed import open_unchecked
from trilith.runtime import Engine, GenerateConfig, SamplingConfig, room
from trilith.tokens import Tokenizer

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


def _chat(
    capsys: Capture, monkeypatch: Patch, path: Path, lines: list[str], *options: str
) -> tuple[str, str]:
    """Answers, each with a line end, and what was said beside them."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    assert main(["chat", str(path), "--temperature", "0", *options]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def _answers(
    path: Path,
    *prompts: str,
    most: int,
    cache: CacheConfig = CacheConfig(),  # noqa: B008
) -> list[str]:
    """Greedy answers to prompts in one conversation, laid out by hand."""
    engine = Engine.load(path, cache=cache)
    tokenizer = Tokenizer.from_bytes(engine.file.tokenizer_bytes)
    ids, answers = [1], []
    for prompt in prompts:
        ids += [4, *tokenizer.encode(prompt), 5]
        config = GenerateConfig(most, (2, 6), SamplingConfig(0.0, None, None, 1.0, 0))
        answers.append(tokenizer.decode(engine.generate(ids, config=config)))
        ids += [*tokenizer.encode(answers[-1]), 6]
    return answers


def test_a_conversation_is_kept(capsys: Capture, monkeypatch: Patch, packed_file: Path) -> None:
    lines = ["a", "", "b", "/quit", "never"]
    out, err = _chat(capsys, monkeypatch, packed_file, lines, "--max-new-tokens", "4")
    assert out == "".join(f"{text}\n" for text in _answers(packed_file, "a", "b", most=4))
    assert "64 tokens of context" in err


def test_the_context_may_be_shorter_and_must_fit_the_memory(
    capsys: Capture, monkeypatch: Patch, packed_file: Path
) -> None:
    lines = ["a", "/quit"]
    _, err = _chat(capsys, monkeypatch, packed_file, lines, "--context", "20")
    assert "20 tokens of context" in err
    planned = room.setup_of(open_unchecked(packed_file), cache=CacheConfig(), layers="held")
    needed = room.needed_bytes(room.with_context(planned, 20))
    monkeypatch.setattr(room, "host_memory_bytes", lambda: needed)
    _chat(capsys, monkeypatch, packed_file, lines, "--context", "20")
    for options, text in [([], "with 64 tokens"), (["--context", "65"], "with 64 tokens")]:
        assert main(["chat", str(packed_file), *options]) == 1
        err = capsys.readouterr().err
        assert text in err and "ask for at most 20 tokens" in err and err.count("\n") == 1


def test_a_turn_begins_with_the_cache_of_the_last_one(
    capsys: Capture, monkeypatch: Patch, tmp_path: Path
) -> None:
    path = pack_toy(tmp_path / "toy.safetensors", context=1000)
    lengths: list[int] = []
    prefill = Engine.prefill

    def counted(self: Engine, tokens_BT: Tensor, **given: Any) -> Tensor:
        lengths.append(tokens_BT.shape[1])
        return prefill(self, tokens_BT, **given)

    monkeypatch.setattr(Engine, "prefill", counted)
    lines = ["some words to begin with " * 20, "more of them " * 20, "and an end"]
    out, _ = _chat(capsys, monkeypatch, path, lines, "--max-new-tokens", "4")
    found = sum(lengths)
    lengths.clear()
    assert out == "".join(f"{text}\n" for text in _answers(path, *lines, most=4))
    # By hand each prompt is run as a whole.
    assert found < 0.7 * sum(lengths)


def test_a_window_is_that_of_the_engine(
    capsys: Capture, monkeypatch: Patch, packed_file: Path
) -> None:
    options = ["--max-new-tokens", "4", "--window", "12", "--sinks", "2", "--cache-bits", "8"]
    out, _ = _chat(capsys, monkeypatch, packed_file, ["some words", "more"], *options)
    texts = _answers(packed_file, "some words", "more", most=4, cache=CacheConfig(8, 12, 2))
    assert out == "".join(f"{text}\n" for text in texts)


def test_a_reset_forgets_it(capsys: Capture, monkeypatch: Patch, packed_file: Path) -> None:
    lines = ["a", "/reset", "b"]
    out, err = _chat(capsys, monkeypatch, packed_file, lines, "--max-new-tokens", "4")
    texts = _answers(packed_file, "a", most=4) + _answers(packed_file, "b", most=4)
    assert out == "".join(f"{text}\n" for text in texts)
    assert "forgotten" in err


def test_an_unknown_command_is_not_said(
    capsys: Capture, monkeypatch: Patch, packed_file: Path
) -> None:
    out, err = _chat(capsys, monkeypatch, packed_file, ["/rest"])
    assert out == "" and "/rest is no command" in err


def test_a_full_context_says_what_it_forgets(
    capsys: Capture, monkeypatch: Patch, packed_file: Path
) -> None:
    lines = ["first words", "second words", "third words", "fourth words"]
    _, err = _chat(capsys, monkeypatch, packed_file, lines, "--max-new-tokens", "10")
    notes = [line for line in err.splitlines() if "forgot" in line and "full" in line]
    assert notes and "64 tokens is full: forgot the oldest 2 of 3 exchanges" in notes[0]
    assert 'from "first words" on' in notes[0]


def test_a_window_lets_no_conversation_leave_the_context(
    capsys: Capture, monkeypatch: Patch, packed_file: Path
) -> None:
    options = ["--max-new-tokens", "10", "--window", "24"]
    _, err = _chat(capsys, monkeypatch, packed_file, ["x" * 25] * 4, *options)
    assert "the context of 64 tokens is full: forgot the oldest" in err


def test_a_message_too_long_by_itself_is_said_and_the_chat_goes_on(
    capsys: Capture, monkeypatch: Patch, packed_file: Path
) -> None:
    out, err = _chat(capsys, monkeypatch, packed_file, ["x" * 300, "a"], "--max-new-tokens", "4")
    assert "this message alone do not fit the context of 64" in err
    assert out == _answers(packed_file, "a", most=4)[0] + "\n"


@pytest.mark.parametrize(
    ("most", "text"), [("4", "--max-new-tokens=4"), ("500", "the context of 64 tokens is full")]
)
def test_an_answer_that_is_cut_says_why(
    capsys: Capture, monkeypatch: Patch, packed_file: Path, most: str, text: str
) -> None:
    _, err = _chat(capsys, monkeypatch, packed_file, ["a"], "--max-new-tokens", most)
    assert f"the answer ends here: {text}" in err


class InterruptingOutput(io.StringIO):
    """Presses Ctrl-C when the third piece of the first answer is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.num_writes = 0

    def write(self, text: str) -> int:
        self.num_writes += bool(text)
        if self.num_writes == 3:
            self.num_writes += 1
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


def test_ctrl_c_stops_the_answer_and_not_the_program(
    capsys: Capture, monkeypatch: Patch, packed_file: Path
) -> None:
    out = InterruptingOutput()
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\n/reset\nb\n"))
    monkeypatch.setattr(sys, "stdout", out)
    options = ["--temperature", "0", "--max-new-tokens", "12"]
    assert main(["chat", str(packed_file), *options]) == 0
    first, second = (_answers(packed_file, prompt, most=12)[0] for prompt in "ab")
    begun, _, rest = out.getvalue().partition("\n")
    assert first.startswith(begun) and begun != first
    assert rest == second + "\n"
    assert "stopped" in capsys.readouterr().err


def test_bytes_that_are_not_utf8_do_not_end_the_chat(
    capsys: Capture, monkeypatch: Patch, packed_file: Path
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"a\xff\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", stdin)
    assert main(["chat", str(packed_file), "--temperature", "0", "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out == _answers(packed_file, "a\ufffd", most=4)[0] + "\n"


@pytest.mark.parametrize(
    ("options", "text"),
    [(["--max-new-tokens", "0"], "--max-new-tokens=0"), (["--top-k", "0"], "top_k=0")],
)
def test_wrong_options_are_one_line(
    capsys: Capture, packed_file: Path, options: list[str], text: str
) -> None:
    assert main(["chat", str(packed_file), *options]) == 1
    err = capsys.readouterr().err
    assert text in err and err.count("\n") == 1
