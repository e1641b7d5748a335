"""`trilith serve` as a program: it answers, ends at Ctrl-C, and says what it lacks."""

import http.client
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.program import PATIENCE_S, PROGRAM, environment

from trilith.cli import main
from trilith.model import CacheConfig
from trilith.packed import open_unchecked
from trilith.runtime import Engine, room

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_stop(packed_file: Path, end: signal.Signals) -> None:
    pytest.importorskip("uvicorn", reason="needs the extra serve")
    command = [*PROGRAM, "serve", str(packed_file), "--port", "0", "--context", "20"]
    # A window ends nothing earlier, and lets no answer leave the context.
    command += ["--window", "12", "--cache-bits", "8"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment(), **pipes) as process:
        line = process.stdout.readline().decode()
        assert line.startswith("toy at http://127.0.0.1:")
        port = int(line.partition("/v1")[0].rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        body = {"model": "toy", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
        connection.request("POST", "/v1/chat/completions", json.dumps(body).encode())
        usage = json.loads(connection.getresponse().read())["usage"]
        assert usage["total_tokens"] <= 21
        connection.close()
        process.send_signal(end)
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: -signal.SIGTERM}[end]
    assert (out, err) == (b"", b"")


def test_without_the_extra_it_says_what_to_install(
    capsys: Capture, packed_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "starlette", None)
    monkeypatch.delitem(sys.modules, "starlette.applications", raising=False)
    monkeypatch.delitem(sys.modules, "trilith.serving.app", raising=False)
    assert main(["serve", str(packed_file)]) == 1
    err = capsys.readouterr().err
    assert "pip install 'trilith[serve]'" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--context", "65"], "--context=65 must be in 1..64"),
        (["--window", "65"], "window=65 is wider than the context of 64"),
        (["--sinks", "2"], "--sinks=2 has no effect without --window"),
        (["--cache-bits", "5"], "cache_bits=5 is not known; choose 32, 16, 8 or 4"),
        (["--running", "0"], "--running=0: at least 1 request"),
        (["--kept-bytes", "0"], "--kept-bytes=0"),
        (["--kept-caches", "0", "--kept-bytes", "9"], "has no effect where none are kept"),
        (["--waiting", "-1"], "--waiting=-1"),
        (["--kept-caches", "-1"], "--kept-caches=-1 must not be negative"),
        (["--max-body-bytes", "0"], "body_bytes=0"),
        (["--time-limit", "nan"], "time_s=nan"),
        (["--connections", "0"], "num_connections=0"),
        (["--idle-limit", "-1"], "idle_s=-1"),
        (["--threads", "0"], "--threads=0"),
        (["--port", "70000"], "port 70000"),
        (["--host", "203.0.113.1"], "cannot listen on 203.0.113.1"),
    ],
)
def test_wrong_options_are_one_line(
    capsys: Capture, packed_file: Path, options: list[str], text: str
) -> None:
    pytest.importorskip("uvicorn", reason="needs the extra serve")
    assert main(["serve", str(packed_file), "--port", "0", *options]) == 1
    err = capsys.readouterr().err
    assert text in err and err.count("\n") == 1


def test_what_does_not_fit_is_said_before_loading(
    capsys: Capture, packed_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("uvicorn", reason="needs the extra serve")
    cache = Engine.load(packed_file).new_cache(batch_size=1, capacity=64)
    # The reference: what one needs alone, and the caches of seven more.
    planned = room.setup_of(open_unchecked(packed_file), cache=CacheConfig(), layers="held")
    alone = room.needed_bytes(room.with_context(planned, None))
    monkeypatch.setattr("trilith.runtime.engine.read_packed", None)

    def refused(memory_bytes: int, *options: str) -> str:
        monkeypatch.setattr(room, "host_memory_bytes", lambda: memory_bytes)
        assert main(["serve", str(packed_file), "--port", "0", *options]) == 1
        captured = capsys.readouterr()
        assert (captured.out, captured.err.count("\n")) == ("", 1)
        return captured.err

    text = refused(alone + 7 * cache.nbytes - 1)
    assert "with 8 times 64 tokens" in text and "--running 1" in text and "at most" in text
    assert "--cache-bits 8" in text
    enough = alone + 8 * cache.nbytes
    assert "kept caches take up to" in refused(enough, "--kept-caches", "8")
    assert "kept caches take up to" in refused(enough, "--kept-bytes", str(8 * cache.nbytes))
