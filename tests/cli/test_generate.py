"""`trilith generate`, from arguments to text, errors and exit codes."""

import array
import fcntl
import io
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import IO

import pytest
import torch
from tests.cli.program import PATIENCE_S, PROGRAM, environment

from trilith.cli import main
from trilith.model import CacheConfig
from trilith.packed import open_unchecked
from trilith.runtime import Engine, GenerateConfig, SamplingConfig, room
from trilith.tokens import Tokenizer

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _same_threads() -> None:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _run(capsys: Capture, *arguments: str | Path) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def _expected(path: Path, prompt: str, max_new_tokens: int) -> str:
    """The greedy continuation, token by token, decoded at the end."""
    engine = Engine.load(path)
    tokenizer = Tokenizer.from_bytes(engine.file.tokenizer_bytes)
    config = GenerateConfig(max_new_tokens, (2,), SamplingConfig(0.0, None, None, 1.0, 0))
    return tokenizer.decode(engine.generate([1, *tokenizer.encode(prompt)], config=config))


@pytest.mark.parametrize("prompt", ["", "def add", "für 木"])
def test_the_continuation_goes_to_stdout(capsys: Capture, packed_file: Path, prompt: str) -> None:
    options = ["--temperature", "0", "--max-new-tokens", "12", "--prompt", prompt]
    code, out, err = _run(capsys, "generate", packed_file, *options)
    assert (code, err) == (0, "")
    assert out == _expected(packed_file, prompt, 12) + "\n"


def test_a_prompt_may_come_from_stdin(
    capsys: Capture, packed_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("def add"))
    options = ["--temperature", "0", "--max-new-tokens", "5", "--prompt", "-"]
    _, out, _ = _run(capsys, "generate", packed_file, *options)
    assert out == _expected(packed_file, "def add", 5) + "\n"


def test_the_seed_decides(capsys: Capture, packed_file: Path) -> None:
    def text(seed: int) -> str:
        options = ["--temperature", "3", "--top-p", "0.99", "--max-new-tokens", "20"]
        return _run(capsys, "generate", packed_file, *options, "--seed", str(seed))[1]

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_output_ends_before_a_stop_string(capsys: Capture, packed_file: Path) -> None:
    options = ["--temperature", "0", "--max-new-tokens", "20", "--prompt", "def add"]
    _, free, _ = _run(capsys, "generate", packed_file, *options)
    stop = free[3:5]
    _, out, _ = _run(capsys, "generate", packed_file, *options, "--stop", stop)
    assert out == free[: free.index(stop)] + "\n"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--max-new-tokens", "100"], "context of 64 tokens of model toy"),
        (["--max-new-tokens", "0"], "max_new_tokens=0"),
        (["--top-k", "0"], "top_k=0"),
        (["--temperature", "0", "--top-k", "3"], "have no effect"),
        (["--top-p", "1.5"], "top_p=1.5"),
        (["--threads", "0"], "--threads=0"),
        (["--stop", ""], "stop string is empty"),
    ],
)
def test_an_error_is_one_line_on_stderr(
    capsys: Capture, packed_file: Path, options: list[str], text: str
) -> None:
    code, out, err = _run(capsys, "generate", packed_file, "--max-new-tokens", "3", *options)
    assert (code, out) == (1, "")
    assert err.startswith("trilith: error: ") and err.count("\n") == 1
    assert text in err


@pytest.mark.parametrize("prompt", ["def add " * 50, "x" * 100_000])
@pytest.mark.parametrize("is_stdin", [False, True])
def test_a_prompt_longer_than_the_context_is_an_error(
    capsys: Capture,
    packed_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    prompt: str,
    is_stdin: bool,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(prompt))
    given = "-" if is_stdin else prompt
    code, out, err = _run(
        capsys, "generate", packed_file, "--max-new-tokens", "1", "--prompt", given
    )
    assert (code, out) == (1, "")
    assert "do not fit the context of 64 tokens" in err and "shorten the prompt" in err
    assert err.startswith("trilith: error: ") and err.count("\n") == 1


@pytest.mark.parametrize("place", ["--prompt", "--stop", "stdin", "stdin of the C locale"])
@pytest.mark.parametrize("text", [b"abc\xff", b"abc\xe2\x82", b"abc\xc0\x80"])
def test_bytes_that_are_not_utf_8_are_an_error(
    capsys: Capture, packed_file: Path, monkeypatch: pytest.MonkeyPatch, place: str, text: bytes
) -> None:
    errors = "strict" if place == "stdin" else "surrogateescape"
    stdin = io.TextIOWrapper(io.BytesIO(text), encoding="utf-8", errors=errors)
    monkeypatch.setattr(sys, "stdin", stdin)
    # As Python decodes the command line.
    given = ["--prompt", "-"] if "stdin" in place else [place, text.decode(errors=errors)]
    code, out, err = _run(capsys, "generate", packed_file, *given)
    assert (code, out) == (1, "")
    assert f"the text is not UTF-8 (0x{text[3]:02x} at place 3)" in err
    assert err.startswith("trilith: error: ") and err.count("\n") == 1


def test_a_program_that_is_given_bytes_ends_without_a_traceback(packed_file: Path) -> None:
    command = [*PROGRAM, "generate", str(packed_file), "--prompt"]
    for argument, stdin in ((b"\xff\xfe", b""), (b"-", b"\xff\xfe")):
        done = subprocess.run(
            [*command, argument], input=stdin, env=environment(), capture_output=True
        )
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"is not UTF-8" in done.stderr and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("content", [None, b"", b"not a model" * 50])
def test_a_bad_file_is_an_error(capsys: Capture, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "bad.safetensors"
    if content is not None:
        path.write_bytes(content)
    code, out, err = _run(capsys, "generate", path)
    assert (code, out) == (1, "")
    assert "bad.safetensors" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [[], ["generate"], ["sing", "x"], ["generate", "x", "--top-k", "many"]],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(capsys: Capture, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: trilith" in capsys.readouterr().err


def test_ctrl_c_exits_with_130_and_without_a_traceback(packed_file: Path) -> None:
    # The prompt comes from a pipe that stays open, so the program waits in the command itself: what
    # was put in is read, and the end does not come.
    command = [*PROGRAM, "generate", str(packed_file), "--prompt", "-"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment(), **pipes) as process:
        process.stdin.write(b"def")
        process.stdin.flush()
        deadline = time.monotonic() + PATIENCE_S
        while _num_waiting(process.stdin):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert (out, err) == (b"", b"")


def _num_waiting(pipe: IO[bytes]) -> int:
    """Bytes in a pipe that nobody has read."""
    number = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, number)
    return number[0]


def test_a_reader_that_leaves_is_no_traceback(packed_file: Path) -> None:
    command = [*PROGRAM, "generate", str(packed_file), "--max-new-tokens", "60"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment(), **pipes) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 1
    assert b"Traceback" not in err and b"Exception" not in err


def test_a_continuation_too_long_for_the_memory_is_one_line(
    capsys: Capture, packed_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["generate", packed_file, "--prompt", "hi there", "--temperature", "0"]
    num_prompt = 1 + len(
        Tokenizer.from_bytes(Engine.load(packed_file).file.tokenizer_bytes).encode("hi there")
    )
    planned = room.setup_of(open_unchecked(packed_file), cache=CacheConfig(), layers="held")
    needed = room.needed_bytes(room.with_context(planned, num_prompt + 20 - 1))
    monkeypatch.setattr(room, "host_memory_bytes", lambda: needed)
    assert _run(capsys, *arguments, "--max-new-tokens", "20")[0] == 0
    monkeypatch.setattr(room, "host_memory_bytes", lambda: needed - 1)
    code, out, err = _run(capsys, *arguments, "--max-new-tokens", "20")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert f"with {num_prompt + 19} tokens, and this machine has" in err
    assert f"ask for at most {num_prompt + 18} tokens" in err


def test_an_allocation_that_fails_is_one_line(capsys: Capture, packed_file: Path) -> None:
    # Far more than the addresses of any machine.
    options = ["--batch", str(10**12), "--prompt-tokens", "5", "--decode-tokens", "3"]
    code, out, err = _run(capsys, "bench", packed_file, *options)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("trilith: error: not enough memory (")
    assert "can't allocate memory" in err


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")]
)
def test_other_lacks_of_memory_are_one_line_too(
    capsys: Capture, packed_file: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Engine, "new_cache", fail)
    code, _, err = _run(capsys, "generate", packed_file)
    assert (code, err.count("\n")) == (1, 1)
    assert f"not enough memory ({str(error) or 'for what Python asked'})" in err


def test_other_errors_of_torch_keep_their_traceback(
    packed_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(Engine, "new_cache", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        main(["generate", str(packed_file)])
