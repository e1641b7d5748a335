"""`trilith bench`: every combination is measured and named; what cannot run is an error."""

import json
import re
from pathlib import Path

import pytest
import torch
from tests.runtime.packed_toys import pack_shape

from trilith.cli import main
from trilith.kernels import available_isas
from trilith.model import ModelConfig
from trilith.quant import QuantConfig

Capture = pytest.CaptureFixture[str]
QUICK = ["--decode-tokens", "3", "--repeats", "2"]


def test_every_combination_is_a_row_of_table_and_json(
    capsys: Capture, packed_file: Path, tmp_path: Path
) -> None:
    threads_before = torch.get_num_threads()
    combined = ["--prompt-tokens", "5", "9", "--batch", "1", "3", "--threads", "1"]
    path = tmp_path / "speed.json"
    assert main(["bench", str(packed_file), *QUICK, *combined, "--json", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    content = json.loads(path.read_text())
    found = [(row["threads"], row["batch_size"], row["prompt_tokens"]) for row in content["rows"]]
    assert found == [(1, 1, 5), (1, 1, 9), (1, 3, 5), (1, 3, 9)]
    for row, line in zip(content["rows"], lines[1:5], strict=True):
        assert (row["decode_tokens"], row["repeats"]) == (3, 2)
        speeds = row["prefill_tokens_per_s"], row["decode_tokens_per_s"]
        assert min(speeds) > 0
        counts = [str(row[key]) for key in ("threads", "batch_size", "prompt_tokens")]
        assert line.split() == [*counts, "3", *(f"{speed:,.1f}" for speed in speeds)]
    assert content["model"] == {"file": "toy.safetensors", "file_bytes": packed_file.stat().st_size}
    assert content["hardware"]["device"] in lines[-1]
    assert torch.get_num_threads() == threads_before


@pytest.mark.skipif(not available_isas(), reason="no C compiler")
@pytest.mark.parametrize(
    ("quant", "kernels"),
    [
        (QuantConfig("ternary", "absmean", "tensor", None, 8), "native, one call a token"),
        (None, "native, one call a token, torch for prompts"),
    ],
    ids=["ternary", "dense"],
)
def test_the_kernels_that_ran_are_named(
    capsys: Capture, toy: ModelConfig, tmp_path: Path, quant: QuantConfig | None, kernels: str
) -> None:
    path, to = pack_shape(tmp_path, toy, quant), tmp_path / "speed.json"
    assert main(["bench", str(path), *QUICK, "--prompt-tokens", "9", "--json", str(to)]) == 0
    assert json.loads(to.read_text())["hardware"]["kernels"] == kernels
    assert capsys.readouterr().out.endswith(f"kernels: {kernels}\n")


def test_streamed_layers_print_what_ran_beside_what(
    capsys: Capture, packed_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "speed.json"
    options = [*QUICK, "--prompt-tokens", "9", "--stream-layers", "--json", str(path)]
    assert main(["bench", str(packed_file), *options]) == 0
    text = r"streamed: (.*) s of reading, (.*) s of computing, (.*) s of waiting; (\d+)% of the"
    found = re.search(text, capsys.readouterr().out)
    assert found is not None
    seconds = json.loads(path.read_text())["hardware"]["stream_seconds"]
    read_s, compute_s, wait_s = (seconds[f"{key}_s"] for key in ("read", "compute", "wait"))
    assert min(read_s, compute_s, wait_s) > 0
    assert found.groups()[:3] == tuple(f"{each:.2f}" for each in (read_s, compute_s, wait_s))
    beside_s = max(0, read_s - wait_s)
    assert int(found[4]) == pytest.approx(100 * beside_s / read_s, abs=0.5)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--prompt-tokens", "62"], "exceed the context of 64 tokens of model toy"),
        (["--prompt-tokens", "5", "0"], "prompt_tokens=0"),
        (["--batch", "0"], "batch_size=0"),
        (["--threads", "2", "0"], "--threads=0"),
        (["--repeats", "0"], "repeats=0"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    capsys: Capture, packed_file: Path, options: list[str], text: str
) -> None:
    assert main(["bench", str(packed_file), *QUICK, *options]) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert text in captured.err
