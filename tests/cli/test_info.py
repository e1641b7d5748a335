"""`trilith info` of a packed file and of a configured model."""

import re
from pathlib import Path

import pytest

from trilith.cli import main

Capture = pytest.CaptureFixture[str]
NANO = """\
name: nano
vocab_size: ${tokenizer.vocab_size}
width: 128
num_layers: 4
num_heads: 4
num_kv_heads: 2
mlp: swiglu
mlp_width: 384
context: 256
rope_theta: 10000.0
norm_eps: 1.0e-6
qk_norm: false
sub_norm: false
tied_head: true
"""
FIXED = NANO.replace("${tokenizer.vocab_size}", "500")
# 4 layers: qkv 128 x 256, out 128 x 128, up 128 x 768, down 384 x 128.
PROJECTIONS = 4 * 128 * (256 + 128 + 768 + 384)
NORMS = 128 * (2 * 4 + 1)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with groups of its own and no primary file."""
    for path, text in {
        "conf/model/nano.yaml": NANO,
        "conf/model/fixed.yaml": FIXED,
        "conf/model/partial.yaml": FIXED.replace("mlp: swiglu\n", "depth: 3\n"),
        "conf/model/broken.yaml": "width: [1,\n",
        "conf/tokenizer/small.yaml": "vocab_size: 1000\n",
        "conf/tokenizer/large.yaml": "vocab_size: 2000\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _name(value: object) -> str:
    return " ".join(value) if isinstance(value, list) else ""


def _add_primary(project: Path) -> None:
    (project / "conf/config.yaml").write_text(
        'defaults: [{model: "???"}, {tokenizer: "???"}, _self_]\n'
    )
    (project / "params.yaml").write_text(
        "model: nano\ntokenizer: small\noverrides: [model.num_layers=4]\n"
    )


def _run(capsys: Capture, *arguments: str) -> tuple[int, str, str]:
    code = main(["info", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def _numbers(out: str) -> dict[str, int]:
    """First two columns of the table rows."""
    rows = re.findall(r"^  (\w+) +([\d,]+)  +[\d.]+%$", out, re.MULTILINE)
    return {name: int(number.replace(",", "")) for name, number in rows}


def test_parts_of_a_file_add_up_to_its_bytes(capsys: Capture, packed_file: Path) -> None:
    code, out, err = _run(capsys, str(packed_file))
    assert (code, err) == (0, "")
    sizes = _numbers(out)
    total = sizes.pop("file")
    assert total == packed_file.stat().st_size == sum(sizes.values())
    assert {"codes", "scales", "embedding", "head", "norms", "tokenizer", "manifest"} == set(sizes)


def test_a_file_is_described(capsys: Capture, packed_file: Path) -> None:
    _, out, _ = _run(capsys, str(packed_file))
    for text in (
        "model toy",
        "width: 24",
        "activations: int8",
        "num_steps: 0",
        "seed: 11",
        "</s>=2",
        "bits per projection weight",
    ):
        assert text in out
    assert re.search(r"^  ternary +base3 +per row +8$", out, re.MULTILINE)
    shares = re.findall(r"^  ternary +[+-]\d\.\d+ +([\d.]+)%$", out, re.MULTILINE)
    assert len(shares) == 3
    assert sum(map(float, shares)) == pytest.approx(100, abs=0.03)


@pytest.mark.parametrize(
    ("overrides", "vocab_size", "factor"),
    [
        (["model=fixed"], 500, 1),
        (["model=nano", "tokenizer=large"], 2000, 1),
        (["model=fixed", "model.num_layers=8"], 500, 2),
    ],
    ids=_name,
)
def test_a_configured_model_is_counted(
    capsys: Capture, project: Path, overrides: list[str], vocab_size: int, factor: int
) -> None:
    code, out, err = _run(capsys, *overrides)
    assert (code, err) == (0, "")
    norms = 128 * (2 * 4 * factor + 1)
    assert _numbers(out) == {
        "embedding": vocab_size * 128,
        "head": 0,
        "projections": PROJECTIONS * factor,
        "norms": norms,
        "biases": 0,
        "total": vocab_size * 128 + PROJECTIONS * factor + norms,
    }


@pytest.mark.parametrize(
    ("overrides", "vocab_size"),
    [(["model=nano"], 1000), (["tokenizer=large"], 2000), (["model=fixed"], 500)],
    ids=_name,
)
def test_params_fill_the_choices_left_open(
    capsys: Capture,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    overrides: list[str],
    vocab_size: int,
) -> None:
    _add_primary(project)
    below = project / "conf/model"
    monkeypatch.chdir(below)
    code, out, err = _run(capsys, *overrides)
    assert (code, err) == (0, "")
    assert _numbers(out)["embedding"] == vocab_size * 128


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["model=giant"], "model/giant"),
        (["model=fixed", "model.widht=3"], "widht"),
        (["model=fixed", "model.width=130"], "model.width=130 is not a multiple of num_heads=4"),
        (["model=fixed", "model.width=["], "model.width=["),
        (["model=nano"], "tokenizer.vocab_size"),
        (["model=partial"], "lacks ['mlp'] and has the unknown keys ['depth']"),
        (["model=broken"], "broken.yaml"),
        (["tokenizer=small"], "no model is chosen"),
    ],
    ids=_name,
)
def test_what_cannot_be_composed_is_one_clear_line(
    capsys: Capture, project: Path, overrides: list[str], text: str
) -> None:
    code, out, err = _run(capsys, *overrides)
    assert (code, out) == (1, "")
    assert err.startswith("trilith: error: ") and err.count("\n") == 1
    assert text in err


def test_without_a_project_the_error_says_where_to_go(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = _run(capsys, "model=nano")
    assert code == 1
    assert "no folder conf/model" in err and "project folder" in err


def test_two_files_are_an_error(capsys: Capture, packed_file: Path) -> None:
    code, _, err = _run(capsys, str(packed_file), str(packed_file))
    assert code == 1
    assert "one file" in err


def test_a_missing_file_names_the_stage(capsys: Capture, tmp_path: Path) -> None:
    code, _, err = _run(capsys, str(tmp_path / "none.safetensors"))
    assert code == 1
    assert "pack stage makes it" in err
