"""What a user can get wrong is one clear line: it names the thing, and nothing half is left."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from tests.imports.making import drawn, write_llama2c
from tests.pipelines.conftest import (
    ROOT,
    STAGES,
    TOY,
    RunStage,
    places,
    write_texts,
)
from tests.pipelines.watching import contents

from trilith.imports import open_source, write_import
from trilith.tokens import TokenizerConfig
from trilith.tokens.learning import train_tokenizer

Damage = Callable[[Path], None]

DENSE = "data/checkpoints/dense"
OPTIONS = [
    ("nonsense=1", "nonsense"),
    ("model.nonsense=1", "nonsense"),
    ("+model.nonsense=1", "model.nonsense is not an option; choose from name, vocab_size"),
    ("model=gigantic", "Available options in 'model'"),
    ("model.width=wide", "model.width='wide' must be of type int"),
    ("model.num_heads=3", "model.width=32 is not a multiple of num_heads=3"),
    ("model.num_kv_heads=3", "num_kv_heads=3; choose a divisor of num_heads"),
    ("seed=abc", "seed='abc' must be of type int"),
    ("seed=-1", "seed=-1 must lie in 0.."),
    ("train.context=128", "train.context=128 is longer than model.context=64"),
    ("model.vocab_size=1000", "model.vocab_size=1000, but the token shards have 420 ids"),
    ("train.micro_batch_size=0", "train.micro_batch_size=0 must be at least 1"),
    ("train.accumulate=-2", "train.accumulate=-2 must be at least 1"),
    ("train.micro_batch_size=100000", "and a batch needs 100000; use a larger corpus"),
    ("train.accumulate=100000", "on 1 devices, 400000 windows, and the training split has"),
    ("train.context=1000000 model.context=1000000", "tokens hold 0 windows of context=1000000"),
    ("pretrain.dense.recipe.peak_lr=nan", "recipe.peak_lr=nan must be positive and finite"),
    ("pretrain.dense.recipe.warmup_steps=7", "warmup_steps=7 are more than the 6 steps"),
    ("model.width=1000000 model.mlp_width=1000000", "bytes and"),
]


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def flip_a_byte_of_the_texts(path: Path) -> None:
    with pq.ParquetFile(path) as file:
        chunk = file.metadata.row_group(0).column(file.schema_arrow.names.index("text"))
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content = bytearray(path.read_bytes())
    content[start + chunk.total_compressed_size - 5] ^= 0xFF
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def not_json(path: Path) -> None:
    path.write_text("{")


def empty_list(path: Path) -> None:
    path.write_text("[]")


def other_version(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))


def other_size(path: Path) -> None:
    content = json.loads(path.read_text())
    content["model"]["width"] = 64
    path.write_text(json.dumps(content))


def without_model(path: Path) -> None:
    content = json.loads(path.read_text())
    del content["model"]
    path.write_text(json.dumps(content))


def other_tokenizer(path: Path) -> None:
    config = TokenizerConfig(420, 1.0, 8, (), 10_000_000, 1)
    lines = [f"sing {n} songs of {chr(97 + n % 26) * 3}{n**3 % 101}, {n**2}" for n in range(999)]
    path.write_bytes(train_tokenizer(["\n".join(lines)], config).model_bytes)


DENSE_READERS = ("teach", "evolve", "pack")
DAMAGES: list[tuple[str, Damage, tuple[str, ...], str]] = [
    (
        f"{DENSE}/model.safetensors",
        flip_a_byte,
        DENSE_READERS,
        "model.safetensors is damaged",
    ),
    (
        f"{DENSE}/model.safetensors",
        truncate,
        DENSE_READERS,
        "model.safetensors is damaged",
    ),
    (f"{DENSE}/model.safetensors", Path.unlink, DENSE_READERS, "not exist; pretrain"),
    (
        f"{DENSE}/config.json",
        not_json,
        DENSE_READERS,
        "config.json is damaged (not JSON",
    ),
    (f"{DENSE}/config.json", empty_list, ("evolve",), "checkpoint format None"),
    (f"{DENSE}/config.json", other_version, ("evolve",), "checkpoint format 99"),
    (
        f"{DENSE}/config.json",
        without_model,
        ("evolve",),
        "damaged (lacks ['model'])",
    ),
    (
        f"{DENSE}/config.json",
        other_size,
        DENSE_READERS,
        "does not fit the model's shape",
    ),
    (f"{DENSE}/config.json", Path.unlink, ("evolve",), "pretrain makes it"),
    ("data/tokens/train.bin", truncate, ("pretrain",), "expected"),
    ("data/tokens/train.bin", flip_a_byte, ("pretrain",), "train.bin is damaged"),
    ("data/tokens/manifest.json", other_version, ("pretrain",), "format_version 99"),
    ("data/tokens/manifest.json", not_json, ("pretrain",), "manifest.json is damaged"),
    (
        "data/tokens/tokenizer.model",
        other_tokenizer,
        ("pretrain", "teach", "evolve", "pack", "evaluate"),
        "tokenizer.model is not the tokenizer that made these ids",
    ),
    ("data/packed/dense.safetensors", flip_a_byte, ("evaluate",), "dense.safetensors has damaged"),
    ("data/packed/ternary.safetensors", truncate, ("evaluate",), "is cut off or damaged"),
    (
        "data/corpus/documents.parquet",
        flip_a_byte_of_the_texts,
        ("tokenization", "evolve", "evaluate"),
        "documents.parquet is damaged",
    ),
    ("data/teacher/manifest.json", not_json, ("evolve",), "manifest.json is damaged"),
    ("data/teacher/ids.npy", Path.unlink, ("evolve",), "ids.npy does not exist; teach makes it"),
    ("data/corpus/documents.parquet", truncate, ("tokenization",), "documents.parquet is damaged"),
]
ABSENT = [
    ("data/corpus", "tokenization", "documents.parquet does not exist; curate makes it"),
    ("data/tokens", "pretrain", "manifest.json does not exist; tokenize makes it"),
    ("data/checkpoints", "evolve", "config.json does not exist; pretrain makes it"),
    ("data/teacher", "evolve", "manifest.json does not exist; teach makes it"),
    ("data/evolved", "pack", "data/evolved does not exist; evolve makes it"),
    ("data/packed", "evaluate", "dense.safetensors does not exist; pack makes it"),
    ("reports/metrics/evaluate", "report", "metrics.json does not exist; evaluate makes it"),
]


def refused(run_stage: RunStage, folder: Path, script: str, *overrides: str) -> str:
    """Run a stage that must refuse and change nothing; return what it printed."""
    _, out, extra = next(stage for stage in STAGES if stage[0] == script)
    before = contents(folder)
    outcome = run_stage(folder, script, *places(out), *extra, *overrides)
    assert outcome.status == 1, outcome.text
    assert "Traceback" not in outcome.text
    assert "error: " in outcome.text
    assert contents(folder) == before
    return outcome.text


@pytest.mark.parametrize(("override", "words"), OPTIONS)
def test_an_option_that_cannot_be_is_named(
    finished_chain: Path, run_stage: RunStage, override: str, words: str
) -> None:
    assert words in refused(run_stage, finished_chain, "pretrain", *override.split())


@pytest.mark.parametrize(("override", "words"), [*OPTIONS[1:5], OPTIONS[7]])
def test_configure_refuses_it_before_any_work(
    tmp_path: Path, run_stage: RunStage, override: str, words: str
) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["overrides"] = [*TOY, override]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    outcome = run_stage(tmp_path, "configure")
    assert (outcome.status, words in outcome.text) == (1, True), outcome.text
    assert "Traceback" not in outcome.text
    assert not (tmp_path / "reports/config.yaml").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "instructions.files: mine.jsonl is not a file; give its path"),
        ("", "mine.jsonl is empty: it holds no row"),
        (
            '{"prompt": "a", "response": "b"}\n{"prompt": "a"}\n',
            "row 2: field 'response' is missing",
        ),
    ],
)
def test_configure_refuses_instructions_that_evolve_could_not_read(
    tmp_path: Path, run_stage: RunStage, content: str | None, words: str
) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"instructions": "files"}
    mine = ["files=[mine.jsonl]", "form=pair", "licence=CC-BY-NC-4.0"]
    params["overrides"] = [*TOY, *(f"instructions.{option}" for option in mine)]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    if content is not None:
        (tmp_path / "mine.jsonl").write_text(content)
    outcome = run_stage(tmp_path, "configure")
    assert (outcome.status, words in outcome.text) == (1, True), outcome.text
    assert "instructions of mine.jsonl: licence CC-BY-NC-4.0" in outcome.text
    assert "Traceback" not in outcome.text
    assert not (tmp_path / "reports/config.yaml").exists()


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        ("nowhere", "nowhere does not exist"),
        ("texts", "texts holds no config.json"),
        ("imported", "evolve.teacher=imported holds another model than the section model says"),
    ],
)
def test_configure_refuses_a_teacher_that_could_not_evolve(
    tmp_path: Path, run_stage: RunStage, teacher: str, words: str
) -> None:
    (tmp_path / "texts").mkdir()
    write_import(
        open_source(write_llama2c(tmp_path / "foreign", drawn()[1])), tmp_path / "imported"
    )
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["overrides"] = [*TOY, f"evolve.teacher={teacher}"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    outcome = run_stage(tmp_path, "configure")
    assert (outcome.status, words in outcome.text) == (1, True), outcome.text
    assert "Traceback" not in outcome.text
    assert not (tmp_path / "reports/config.yaml").exists()


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ("model: [nano", "params.yaml is not YAML"),
        ("model: nano\n", "hold a list `overrides`"),
        ("corpus: folder\noverrides: [model=nano]\n", "has no value"),
    ],
)
def test_a_broken_params_file_is_named(
    tmp_path: Path, run_stage: RunStage, params: str, words: str
) -> None:
    if "folder" in params:
        whole = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"corpus": "folder"}
        params = yaml.safe_dump(whole)
    (tmp_path / "params.yaml").write_text(params)
    outcome = run_stage(tmp_path, "configure")
    assert (outcome.status, words in outcome.text) == (1, True), outcome.text
    assert "Traceback" not in outcome.text


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("absent", "corpus.source.path='source' is not a folder; give the path of one"),
        ("file", "corpus.source.path='source' is not a folder; give the path of one"),
        ("empty", "source: no file below the folder ends in ['.py', '.md', '.rst', '.txt']"),
        ("binary", "no document is left: 2 read, rejected by encoding 2; check corpus.source"),
        ("short", "of 2 documents none fell into"),
    ],
)
def test_a_source_without_documents_is_named(
    tmp_path: Path, run_stage: RunStage, kind: str, words: str
) -> None:
    source = tmp_path / "source"
    write_texts(tmp_path / "texts")
    if kind == "file":
        source.write_text("text")
    elif kind != "absent":
        source.mkdir()
    if kind == "binary":
        (source / "image.py").write_bytes(bytes(range(256)) * 20)
        (source / "latin.txt").write_bytes("Größe und Maß\n".encode("latin-1") * 20)
    if kind == "short":
        for name in ("module_00.py", "module_01.py"):
            shutil.copy(tmp_path / "texts" / name, source)
    assert words in refused(run_stage, tmp_path, "curate", "corpus.source.path=source")


@pytest.mark.parametrize(("path", "script", "words"), ABSENT)
def test_a_stage_before_its_input_names_the_stage_to_run(
    chain: Path, run_stage: RunStage, path: str, script: str, words: str
) -> None:
    shutil.rmtree(chain / path)
    assert words in refused(run_stage, chain, script)


@pytest.mark.parametrize(
    ("path", "damage", "scripts", "words"),
    DAMAGES,
    ids=[f"{Path(path).name}-{damage.__name__}" for path, damage, _, _ in DAMAGES],
)
def test_a_damaged_input_is_refused(
    chain: Path, run_stage: RunStage, path: str, damage: Damage, scripts: list[str], words: str
) -> None:
    damage(chain / path)
    for script in scripts:
        assert words in refused(run_stage, chain, script), script
