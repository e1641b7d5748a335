"""Reading the metric files: what is required, what is damaged, what may be absent."""

import json
from pathlib import Path

import pytest
from tests.reporting.synthetic import STEP_COST, evaluation, write, write_rows

from trilith.reporting.inputs import read_inputs


@pytest.mark.parametrize(
    ("file", "stage"),
    [
        ("curate/metrics.json", "curate"),
        ("tokenize/metrics.json", "tokenize"),
        ("pretrain/dense/metrics.json", "pretrain@dense"),
        ("pretrain/ternary/steps.csv", "pretrain@ternary"),
        ("pretrain/ternary/events.csv", "pretrain@ternary"),
        ("evolve/metrics.json", "evolve"),
        ("evolve/curves/evolved/validation.csv", "evolve"),
        ("pack/metrics.json", "pack"),
        ("pack/histograms.json", "pack"),
        ("evaluate/metrics.json", "evaluate"),
    ],
)
def test_an_absent_file_names_itself_and_its_stage(metrics: Path, file: str, stage: str) -> None:
    (metrics / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"{file}.*{stage} makes it"):
        read_inputs(metrics)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("curate/metrics.json", "{", "not JSON"),
        ("curate/metrics.json", "[1]", "expected an object"),
        ("curate/metrics.json", '{"documents_in": 4}', "documents_out=None, expected a number"),
        ("tokenize/metrics.json", '{"vocab_size": "many"}', "vocab_size='many'"),
        ("tokenize/metrics.json", '{"vocab_size": NaN}', "not finite"),
        ("pretrain/dense/steps.csv", "step,tokens\n1,2\n", "lacks the columns loss_nats"),
        ("pretrain/dense/validation.csv", "step,tokens,loss_nats\n1,2,x\n", "'x'"),
        ("pretrain/dense/validation.csv", "step,tokens,loss_nats\n1,2\n", "cut short"),
        ("pretrain/dense/validation.csv", "step,tokens,loss_nats\n,2,3\n", "without a step"),
        ("pretrain/dense/events.csv", "step,kind,detail\n3,nap,\n", "nap"),
        ("pack/histograms.json", '{"dense": {}}', "no weights histogram"),
        (
            "pack/histograms.json",
            '{"dense": {"weights": {"edges": [0, 1], "counts": [1, 2]}}}',
            "2 edges for 2 counts",
        ),
        ("evaluate/run.json", '{"wall_s": "long"}', "wall_s='long'"),
    ],
)
def test_a_damaged_file_is_a_value_error_that_names_it(
    metrics: Path, file: str, content: str, message: str
) -> None:
    (metrics / file).write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_inputs(metrics)
    assert file in str(caught.value)


def test_a_run_without_steps_is_damaged(metrics: Path) -> None:
    steps = metrics / "pretrain" / "dense" / "steps.csv"
    steps.write_text(steps.read_text().splitlines()[0] + "\n")
    with pytest.raises(ValueError, match="holds no steps"):
        read_inputs(metrics)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("bits_per_byte", None, "bits_per_byte=None"),
        ("file_bytes", 0, "file_bytes=0"),
        ("kl_nats", "low", "kl_nats='low'"),
        ("reference", "nobody", "'nobody' is no model"),
    ],
)
def test_a_model_with_a_wrong_figure_is_named(
    metrics: Path, key: str, value: object, message: str
) -> None:
    content = evaluation()
    content["models"]["ternary"][key] = value
    write(metrics / "evaluate" / "metrics.json", content)
    with pytest.raises(ValueError, match=f"models/ternary.*{message}"):
        read_inputs(metrics)


def test_an_evaluation_without_the_dense_reference_is_refused(metrics: Path) -> None:
    content = evaluation()
    del content["models"]["dense"]
    write(metrics / "evaluate" / "metrics.json", content)
    with pytest.raises(ValueError, match="expected 'dense' among them"):
        read_inputs(metrics)


def test_models_keep_the_order_of_the_file(metrics: Path) -> None:
    content = evaluation()
    content["models"] = dict(reversed(content["models"].items()))
    write(metrics / "evaluate" / "metrics.json", content)
    assert list(read_inputs(metrics).evaluation.models) == list(content["models"])


def test_phases_run_from_their_first_to_their_last_step(finished_metrics: Path) -> None:
    evolved = {run.name: run for run in read_inputs(finished_metrics).evolution}["evolved"]
    assert evolved.phases == (("prime7", 1, 300), ("descend", 301, 600), ("instruct", 601, 900))


def test_steps_that_begin_again_with_a_phase_are_refused(metrics: Path) -> None:
    header = (metrics / "evolve/curves/evolved/steps.csv").read_text().splitlines()[0].split(",")
    rows = [
        [step, 1, 4.0, "", 0.1, 1, 1, 0.1, *STEP_COST, "", "", phase]
        for phase in "ab"
        for step in (1, 2)
    ]
    write_rows(metrics / "evolve" / "curves" / "evolved" / "steps.csv", header, rows)
    with pytest.raises(ValueError, match="phase 'b' starts again at step 1"):
        read_inputs(metrics)


def test_other_pretraining_runs_are_taken_along(metrics: Path) -> None:
    (metrics / "pretrain" / "ternary").rename(metrics / "pretrain" / "wide")
    (metrics / "pretrain" / "ternary").symlink_to(metrics / "pretrain" / "wide")
    names = [run.name for run in read_inputs(metrics).pretrain]
    assert names == ["dense", "ternary", "wide"]


def test_null_figures_count_as_not_measured(metrics: Path) -> None:
    path = metrics / "pretrain" / "dense" / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"train/mfu": None}))
    assert "train/mfu" not in read_inputs(metrics).pretrain[0].metrics
