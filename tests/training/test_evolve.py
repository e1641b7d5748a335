"""The evolution at toy size: fits before the first step, phases without steps, packed answers."""

import csv
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.conftest import RECIPE, TRAIN

from trilith.evolution import (
    AnswerRows,
    Instruction,
    Marks,
    encode_instructions,
    fit_to_grid,
    pack_instructions,
)
from trilith.files import read_json
from trilith.model import Checkpoint, ModelConfig, Transformer, build_model, load_checkpoint
from trilith.quant import BitLinear, QuantConfig
from trilith.tokens import Tokenizer, TokenizerConfig, train_tokenizer
from trilith.tokens.shards import open_split, write_manifest, write_shard
from trilith.training.batches import TokenWindows, shift
from trilith.training.evolve import EvolveInputs, evolve
from trilith.training.evolve_config import EvolveConfig, Phase
from trilith.training.fit import RunPlace
from trilith.training.module import cross_entropy
from trilith.training.teaching import Schooling, Teacher, keep_predictions

MARKS = Marks(bos=1, user=4, assistant=5, end=6, pad=3)
FITTED = QuantConfig("ternary", "least_squares", "row", None, 8)
PRIME7 = QuantConfig("prime7", "least_squares", "row", None, 8)
ABSMEAN = QuantConfig("ternary", "absmean", "tensor", None, 8)
LENGTH = 24


@pytest.fixture(scope="module")
def tokens_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of random words."""
    folder = tmp_path_factory.mktemp("tokens")
    rng = random.Random(0)
    words = ["".join(rng.sample("abcdefg", 4)) for _ in range(120)]
    texts = [" ".join(rng.choices(words, k=30)) for _ in range(60)]
    tokenizer = train_tokenizer(texts, TokenizerConfig(400, 1.0, 8, (), 10_000_000, 1))
    splits = {
        split: write_shard(
            folder,
            split=split,
            batches=[[tokenizer.encode(text) for text in texts]],
            num_bytes=sum(map(len, texts)),
            vocab_size=tokenizer.vocab_size,
            marks=(tokenizer.bos_id, tokenizer.eos_id),
        )
        for split in ("train", "validation")
    }
    write_manifest(folder, tokenizer=tokenizer, splits=splits)
    return folder


def answers(tokens_dir: Path, encode: Any) -> AnswerRows:
    """Rows of short instructions."""
    tokenizer = Tokenizer.load(tokens_dir / "tokenizer.model")
    instructions = [Instruction("ab" * (n % 5), "cd" * (n % 3 + 1), "x") for n in range(30)]
    return encode(instructions, encoder=tokenizer, marks=MARKS, length=LENGTH)


def twin(tokens_dir: Path, toy: ModelConfig) -> Checkpoint:
    shard = open_split(tokens_dir, "train")
    torch.manual_seed(0)
    model = build_model(replace(toy, vocab_size=shard.vocab_size), None).eval()
    seen = {"num_tokens_seen": 0, "num_steps": 0}
    return Checkpoint(model, None, shard.tokenizer_sha256, seen)


def inputs_of(
    dense: Checkpoint, tokens_dir: Path, rows: AnswerRows, held_out: AnswerRows
) -> EvolveInputs:
    teacher = Teacher(dense, {"model.safetensors": "0"}, "the twin")
    return EvolveInputs(teacher, tokens_dir, tokens_dir / "nothing", rows, held_out)


def config(phases: dict[str, Phase], **changes: Any) -> EvolveConfig:
    options: dict[str, Any] = {
        "recipe": replace(RECIPE, warmup_steps=1),
        "answer_rows": 2,
        "answer_length": LENGTH,
        "answer_packing": "none",
        "fit": "plain",
        "calibration_windows": 4,
        "kl_weight": 1.0,
        "kl_share": None,
        "teacher": None,
        "text_share": 0.0,
        "kl_budget": None,
        "move_share": None,
        "top_k": None,
        "patience": None,
        "control": True,
    }
    return EvolveConfig(phases=phases, **options | changes)


def run(inputs: EvolveInputs, options: EvolveConfig, place: RunPlace, out: Path) -> dict[str, Any]:
    train = replace(TRAIN, validation_batches=2)
    return evolve(inputs, config=options, train=train, out_dir=out, place=place)


def test_a_phase_starts_from_its_fit_and_reports_what_each_projection_loses(
    tokens_dir: Path, toy: ModelConfig, place: RunPlace, tmp_path: Path
) -> None:
    dense = twin(tokens_dir, toy)
    rows = answers(tokens_dir, pack_instructions)
    inputs = inputs_of(dense, tokens_dir, rows, rows)._replace(licence="CC BY-NC 4.0")
    options = config({"ternary": Phase(FITTED, 2)}, fit="gptq", answer_packing="best_fit")
    metrics = run(inputs, options, place, tmp_path / "out")
    tokens = open_split(tokens_dir, "train").tokens
    windows = TokenWindows(tokens, context=TRAIN.context, batch_size=4, seed=place.seed)
    fitted = fit_to_grid(dense.model, FITTED, method="gptq", windows_NT=windows.batch(0).inputs_BT)
    assert len(fitted.output_errors) == 4 * toy.num_layers
    for name, error in fitted.output_errors.items():
        assert metrics[f"evolved_ternary/fit/output_error/{name}"] == pytest.approx(error)
    assert (metrics["answers/train"], metrics["answers/num_rows"]) == (30, len(rows.tokens))
    assert len(rows.tokens) < 30
    evolved = load_checkpoint(tmp_path / "out" / "evolved_ternary", made_by="evolve").provenance
    assert evolved["instructions_licence"] == "CC BY-NC 4.0"
    assert evolved["num_answers_seen"] == 2 * 2 * 30 // len(rows.tokens)


def test_a_phase_of_no_steps_is_the_fit_alone(
    tokens_dir: Path, toy: ModelConfig, place: RunPlace, tmp_path: Path
) -> None:
    dense = twin(tokens_dir, toy)
    rows = answers(tokens_dir, encode_instructions)
    none = rows._replace(tokens=rows.tokens[:0], answer_mask=rows.answer_mask[:0])
    inputs = inputs_of(dense, tokens_dir, rows, none)
    metrics = run(inputs, config({"ternary": Phase(FITTED, 0)}), place, tmp_path / "out")
    windows = TokenWindows(
        open_split(tokens_dir, "train").tokens, context=TRAIN.context, batch_size=4, seed=0
    )
    calibration = windows.batch(0).inputs_BT
    fitted = fit_to_grid(dense.model, FITTED, method="plain", windows_NT=calibration).model
    made = load_checkpoint(tmp_path / "out" / "evolved_ternary", made_by="evolve")
    for name, tensor in fitted.state_dict().items():
        assert torch.equal(tensor, made.model.state_dict()[name]), name
    held_out = TokenWindows(
        open_split(tokens_dir, "validation").tokens, context=TRAIN.context, batch_size=4, seed=0
    )
    for name, model in (("evolved_ternary", made.model), ("dense_continued_ternary", dense.model)):
        expected = mean_loss(model, [held_out.batch(0), held_out.batch(1)])
        assert metrics[f"{name}/validation/loss_nats"] == pytest.approx(expected, rel=1e-5)
    assert metrics["evolved_ternary/answers/train_loss_nats"] > 0
    assert "evolved_ternary/answers/validation_loss_nats" not in metrics
    assert "instructions_licence" not in made.provenance
    assert read_json(place.metrics_dir / "curves/evolved_ternary/metrics.json", made_by="test")


@torch.no_grad()
def mean_loss(model: Transformer, batches: list[Any]) -> float:
    losses = [float(cross_entropy(model.eval()(batch.inputs_BT), batch)) for batch in batches]
    return sum(losses) / len(losses)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@torch.no_grad()
def test_packed_answers_have_the_loss_that_they_have_alone(
    tokens_dir: Path, toy: ModelConfig
) -> None:
    model = twin(tokens_dir, toy).model
    losses = []
    for encode in (encode_instructions, pack_instructions):
        rows = answers(tokens_dir, encode)
        batch = shift(rows.tokens, rows.answer_mask, rows.segments)
        losses.append(cross_entropy(model(batch.inputs_BT, segments_BT=batch.segments_BT), batch))
    # The same sum in another order.
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fit": "magic"}, "fit='magic' is not known; choose plain, weighted or gptq"),
        ({"calibration_windows": 0}, "calibration_windows=0 must be at least 1"),
        ({"answer_packing": "tight"}, "answer_packing='tight' is not known; choose none or"),
        ({"fit": "weighted", "phases": {"t": Phase(ABSMEAN, 2)}}, "phases.t.quant.scale_rule=absm"),
        ({"phases": {}}, "phases is empty"),
        ({"text_share": 1.0}, "text_share=1.0 must lie in"),
        ({"patience": 0}, "patience=0 must be at least 1, or null"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"kl_share": 0.0}, r"kl_share=0.0 must lie in \(0, 1\], or be null"),
        ({"kl_share": 0.5, "kl_weight": 0.0}, "kl_share=0.5 has no effect with evolve.kl_weight"),
        ({"top_k": 8, "kl_weight": 0.0}, "top_k=8 has no effect with evolve.kl_weight=0"),
        ({"kl_budget": 0.1}, "kl_budget=0.1 with evolve.move_share=None; set both"),
        ({"kl_budget": 0.0, "move_share": 0.5}, "kl_budget=0.0 must be positive"),
        (
            {
                "kl_budget": 0.1,
                "move_share": 0.5,
                "phases": {"a": Phase(FITTED, 2), "b": Phase(ABSMEAN, 2)},
            },
            "kl_budget needs one rule and granularity",
        ),
    ],
)
def test_an_option_that_cannot_be_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        config(**{"phases": {"ternary": Phase(FITTED, 2)}} | changes)


def test_negative_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="num_steps=-1 must not be negative"):
        Phase(FITTED, -1)


def test_without_a_control_the_teacher_is_the_reference(
    tokens_dir: Path, toy: ModelConfig, place: RunPlace, tmp_path: Path
) -> None:
    dense = twin(tokens_dir, toy)
    rows = answers(tokens_dir, encode_instructions)
    options = config({"ternary": Phase(FITTED, 2)}, control=False)
    run(inputs_of(dense, tokens_dir, rows, rows), options, place, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["evolved_ternary"]
    made = load_checkpoint(tmp_path / "out" / "evolved_ternary", made_by="evolve")
    assert made.provenance["reference"] == "dense"


def test_a_phase_may_see_text_alone_first(
    tokens_dir: Path, toy: ModelConfig, place: RunPlace, tmp_path: Path
) -> None:
    dense = twin(tokens_dir, toy)
    rows = answers(tokens_dir, encode_instructions)
    options = config({"ternary": Phase(FITTED, 4)}, text_share=0.5)
    run(inputs_of(dense, tokens_dir, rows, rows), options, place, tmp_path / "out")
    seen = load_checkpoint(tmp_path / "out" / "evolved_ternary", made_by="evolve").provenance
    assert seen["num_answers_seen"] == 2 * 2


def test_a_phase_ends_early_and_its_control_with_it(
    tokens_dir: Path,
    toy: ModelConfig,
    place: RunPlace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dense = twin(tokens_dir, toy)
    rows = answers(tokens_dir, encode_instructions)
    losses = iter([3.0, 2.0, 2.5, 2.6, *[9.0] * 50])
    monkeypatch.setattr(
        "trilith.training.evolve_phase.held_out_loss", lambda *_: 1000 * next(losses)
    )
    options = config({"ternary": Phase(FITTED, 30)}, patience=2)
    train = replace(TRAIN, validation_batches=2, validate_every=3)
    inputs = inputs_of(dense, tokens_dir, rows, rows)
    metrics = evolve(inputs, config=options, train=train, out_dir=tmp_path / "out", place=place)
    # Best at the second validation; the two after it were no better.
    assert metrics["evolved_ternary/train/last_step"] == 12
    assert metrics["dense_continued_ternary/train/num_steps"] == 12
    assert metrics["dense_continued_ternary/train/result_step"] == 12


def test_layers_move_within_the_budget(
    tokens_dir: Path,
    toy: ModelConfig,
    place: RunPlace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def costs(teacher: Transformer, before: Transformer, after: Transformer, **_: Any) -> Any:
        return {name: 1.0 for name, m in after.named_modules() if isinstance(m, BitLinear)}

    # A model that has learned nothing has no sensitive layers.
    monkeypatch.setattr("trilith.training.evolve_phase.layer_costs", costs)
    dense = twin(tokens_dir, toy)
    rows = answers(tokens_dir, encode_instructions)
    phases = {"prime7": Phase(PRIME7, 6), "ternary": Phase(FITTED, 6)}
    options = config(phases, kl_budget=4.0, move_share=0.5, control=False)
    metrics = run(inputs_of(dense, tokens_dir, rows, rows), options, place, tmp_path / "out")
    assert metrics["evolved_ternary/descent/num_groups"] == toy.num_layers
    made = load_checkpoint(tmp_path / "out" / "evolved_ternary", made_by="evolve")
    assert made.quant == FITTED
    shares = [v for k, v in metrics.items() if k.startswith("evolved_ternary/quant/level_share/")]
    assert len(shares) == 3 and sum(shares) == pytest.approx(1)
    assert metrics["evolved_ternary/train/kl_nats"] > 0


def test_the_teacher_fades_over_all_phases(
    tokens_dir: Path, toy: ModelConfig, place: RunPlace, tmp_path: Path
) -> None:
    dense = twin(tokens_dir, toy)
    rows = answers(tokens_dir, encode_instructions)
    phases = {"prime7": Phase(PRIME7, 4), "ternary": Phase(FITTED, 4)}
    options = config(phases, kl_share=0.75, top_k=4, control=False)
    assert [options.pull(step) for step in (0, 3, 6, 7)] == [1.0, 0.5, 0.0, 0.0]
    inputs = inputs_of(dense, tokens_dir, rows, rows)._replace(taught_dir=tmp_path / "taught")
    train = replace(TRAIN, validation_batches=2)
    schooling = Schooling(options, train, tokens_dir, num_ranks=1, seed=place.seed)
    kept = keep_predictions(inputs.teacher, schooling, inputs.taught_dir)
    assert kept["teacher/num_windows"] == 6 * TRAIN.micro_batch_size
    run(inputs, options, place, tmp_path / "out")
    curves = [place.metrics_dir / f"curves/evolved_{phase}/steps.csv" for phase in phases]
    nats = [float(row["kl_nats"] or "nan") for path in curves for row in read_csv(path)]
    assert [math.isfinite(value) for value in nats] == [True] * 6 + [False] * 2


def test_what_is_no_dense_model_cannot_teach(
    tokens_dir: Path, toy: ModelConfig, place: RunPlace, tmp_path: Path
) -> None:
    dense = twin(tokens_dir, toy)
    rows = answers(tokens_dir, encode_instructions)
    options = config({"ternary": Phase(FITTED, 2)})
    for wrong, words in (
        (dense._replace(quant=FITTED), "is on the grid ternary; evolution starts from a dense"),
        (dense._replace(tokenizer_sha256="0"), "another tokenizer than the twin was trained with"),
    ):
        with pytest.raises(ValueError, match=words):
            run(inputs_of(wrong, tokens_dir, rows, rows), options, place, tmp_path / "out")
    with pytest.raises(ValueError, match=r"top_k=5000 of .* leaves none out"):
        many = config({"ternary": Phase(FITTED, 2)}, top_k=5000)
        run(inputs_of(dense, tokens_dir, rows, rows), many, place, tmp_path / "out")
