"""`trilith memory`: figures that add up, choices that have an effect, errors in one line."""

import contextlib
import io
import re
from functools import cache
from pathlib import Path

import pytest

from trilith.cli import main
from trilith.hardware import DEVICES
from trilith.model import CacheConfig
from trilith.runtime import Engine

Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def _run(capsys: Capture, *choices: str) -> tuple[int, str, str]:
    code = main(["memory", *choices])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def _table(out: str, title: str) -> dict[str, list[float]]:
    """Rows of the table below a title, by their first column."""
    text = next(part for part in out.split("\n\n") if part.startswith(title))
    rows = re.findall(r"^  (\S.*?)((?: +[\d.,]+ [MG]B)+)$", text, re.MULTILINE)
    return {
        name: [float(cell.replace(",", "")) for cell in re.findall(r"[\d.,]+(?= [MG]B)", cells)]
        for name, cells in rows
    }


@cache
def _output(*choices: str) -> str:
    """What the command prints; many tests compare with the same few runs."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["memory", *choices]) == 0
    return out.getvalue()


@pytest.mark.parametrize("choices", [[], ["device=h200"], ["variant=dense"]], ids=str)
def test_parts_add_up_to_the_total(choices: list[str]) -> None:
    out = _output("model=micro", *choices)
    for title in ("training", "generation"):
        table = _table(out, title)
        for total, *cells in zip(table.pop("total"), *table.values(), strict=True):
            assert total == pytest.approx(sum(cells), abs=0.01 * len(cells))


def test_tritters_plan_fits_16_gb_with_a_cache_of_8_bits_and_not_on_a_gpu(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = ["model=7b", "tokenizer.vocab_size=32000", "context=131072", "batch=1"]
    monkeypatch.setattr("trilith.hardware.host_memory_bytes", lambda: 16 * 10**9)
    _, out, _ = _run(capsys, *choices, "device=cpu")
    assert "7,242,330,112 parameters" in out
    assert "conf/ says model.context=4096" in out
    assert _table(out, "generation")["KV cache"] == [34.36, 17.18, 9.26, 4.97]
    assert re.search(r"fits +no +no +yes +yes", out)
    _, out, _ = _run(capsys, *choices, "device=rtx5080")
    # Caches are float32 there.
    assert _table(out, "generation")["KV cache"] == [34.36]
    assert re.search(r"fits +no$", out, re.MULTILINE)
    assert "does not fit the 16.00 GB of rtx5080" in out
    assert "with train.acceleration.checkpoint_activations=true" in out


@pytest.mark.parametrize(
    ("choice", "part"),
    [
        ("batch=8", "activations"),
        ("context=128", "activations"),
        ("train.precision=bf16-mixed", "activations"),
        ("train.acceleration.checkpoint_activations=true", "activations"),
        ("train.accumulate=2", "working"),
        ("recipe@pretrain.ternary.recipe=dense_then_ternary_muon", "optimizer"),
        ("pretrain.ternary.recipe.optimizer=muon", "optimizer"),
        ("pretrain.ternary.recipe.z_loss=0.1", "activations"),
        ("quant=ternary_learned", "gradients"),
        ("variant=dense", "weight copies"),
        ("model.num_layers=5", "weights"),
        ("tokenizer=bpe8192", "working"),
        ("device=cpu", "snapshot"),
    ],
)
def test_a_choice_changes_its_part(choice: str, part: str) -> None:
    base = ("model=nano", "device=l4")
    changed = ("model=nano", choice) if "device" in choice else (*base, choice)
    before, after = (_table(_output(*choices), "training") for choices in (base, changed))
    assert after[part] != before[part]


@pytest.mark.parametrize(
    ("choice", "row"),
    [
        ("context=512", "KV cache"),
        ("cache_bits=8", "KV cache"),
        ("window=100", "KV cache"),
        ("running=3", "KV cache"),
        ("kept=2", "kept caches"),
        ("batch=2", "KV cache"),
        ("layers=streamed", "unpacked"),
        ("prompt=8", "activations"),
        ("pack=bits2", "packed file"),
        ("pack.embedding=bf16", "packed file"),
        ("quant=prime7", "packed file"),
        ("quant=sign", "packed file"),
        ("variant=dense", "packed file"),
    ],
)
def test_a_choice_changes_generation(choice: str, row: str) -> None:
    base = ("model=nano", "device=cpu")
    before, after = (_table(_output(*choices), "generation") for choices in (base, (*base, choice)))
    assert before.get(row) != after[row]


def test_sinks_of_a_window_count() -> None:
    base = ("model=nano", "device=cpu", "window=100", "cache_bits=4")
    before, after = (
        _table(_output(*base, *more), "generation")["KV cache"][0] for more in ((), ("sinks=68",))
    )
    # Keys of sinks have 16 bits.
    assert before < after


def test_a_gpu_holds_embedding_and_head_in_float32() -> None:
    base = ("model=nano", "device=l4", "tokenizer=bpe8192")
    small, large = (
        _table(_output(*base, f"tokenizer.vocab_size={number}"), "generation")["weights"][0]
        for number in (2048, 2048 + 100_000)
    )
    width = 160
    assert large - small == pytest.approx(4 * 100_000 * width / 1e6, abs=0.011)


def test_a_packed_file_is_planned_as_it_is(
    capsys: Capture, packed_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No project is needed for it.
    monkeypatch.chdir(tmp_path)
    code, out, _ = _run(capsys, str(packed_file), "running=300", "kept=200", "device=cpu")
    assert code == 0
    engine = Engine.load(packed_file)
    caches = [
        Engine.load(packed_file, cache=CacheConfig(bits)).new_cache(batch_size=1, capacity=64)
        for bits in (32, 16, 8, 4)
    ]
    table = _table(out, "generation")
    num_bytes = sum(
        tensor.nbytes for name, tensor in engine.file.tensors.items() if "tokenizer" not in name
    )
    assert table["packed file"] == [round(num_bytes / 1e6, 2)] * 4
    for row, number in [("KV cache", 300), ("kept caches", 200)]:
        expected = [number * each.nbytes / 1e6 for each in caches]
        assert table[row] == pytest.approx(expected, abs=0.006)
    for total, *cells in zip(table.pop("total"), *table.values(), strict=True):
        assert total == pytest.approx(sum(cells), abs=0.01 * len(cells))


@pytest.mark.parametrize(
    ("choices", "text"),
    [
        (["context=65"], "context=65 is longer than the 64 tokens"),
        (["quant=prime7"], "quant=prime7 has no effect on the packed file"),
        (["variant=dense"], "variant=dense has no effect on the packed file"),
        (["window=65"], "window=65 is wider than the context of 64 tokens"),
        (["sinks=3"], "sinks=3 has no effect without window"),
        (["cache_bits=8", "device=l4"], "do not run on a GPU"),
        (["kept=1", "device=l4"], "have no effect on a GPU"),
    ],
    ids=str,
)
def test_what_a_packed_file_cannot_do_is_one_line(
    capsys: Capture, packed_file: Path, choices: list[str], text: str
) -> None:
    code, out, err = _run(capsys, str(packed_file), *choices)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert text in err


@pytest.mark.parametrize(
    ("choices", "text"),
    [
        (["model=nano", "device=h300"], "choose one of " + ", ".join(DEVICES)),
        (["model=nano", "corpus=folder"], "corpus=folder has no effect"),
        (["model=nano", "train.validate_every=7"], "train.validate_every=7 has no effect"),
        (["model=nano", "variant=dense", "quant=prime7"], "quant=prime7 has no effect"),
        (["model=nano", "variant=sparse"], "choose dense or ternary"),
        (["model=nano", "batch=0"], "batch=0 must be a whole number of at least 1"),
        (["model=nano", "context=1.5"], "context=1.5 must be a whole number"),
        (["model=nano", "cache_bits=3"], "cache_bits=3 is not known"),
        (["model=nano", "running=0"], "running=0 must be a whole number of at least 1"),
        (["model=nano", "kept=-1"], "kept=-1 must be a whole number of at least 0"),
        (["model=nano", "window=300", "device=cpu"], "window=300 is wider than the context of 256"),
        (["model=nano", "window=9", "device=l4"], "window=9 do not run on a GPU"),
        (["model=nano", "pack=bits2", "device=l4"], "pack=bits2 has no effect"),
        (["none.safetensors"], "none.safetensors"),
        (["model=nano", "prompt=300"], "prompt=300 is longer than context=256"),
        (["model=nano", "batch=1", "batch=2"], "batch is given twice"),
        (["model=nano", "nano"], "'nano' is not KEY=VALUE"),
        (["model=giant"], "model/giant"),
        (["model=nano", "train.precision=8"], "precision=8 must be one of 32-true"),
    ],
    ids=str,
)
def test_an_error_is_one_line(capsys: Capture, choices: list[str], text: str) -> None:
    code, out, err = _run(capsys, *choices)
    assert (code, out) == (1, "")
    assert err.startswith("trilith: error: ") and err.count("\n") == 1
    assert text in err


def test_a_project_without_training_cannot_plan(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/nano.yaml").write_text((ROOT / "conf/model/nano.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    code, _, err = _run(capsys, "model=nano", "model.vocab_size=500")
    assert code == 1
    assert "gives no section train, pretrain, pack" in err


def test_info_shows_the_sizes_in_short(capsys: Capture) -> None:
    assert main(["info", "model=125m"]) == 0
    out = capsys.readouterr().out
    sizes = _table(out, "memory")
    total = int(re.findall(r"total +([\d,]+)", out)[0].replace(",", ""))
    assert sizes["gradients"] == [round(4 * total / 1e6, 2)]
    assert sizes["adamw state"] == [round(8 * total / 1e6, 2)]
    assert {"weights", "packed file"} < set(sizes)
