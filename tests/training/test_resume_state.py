"""The resume state: what is kept, what a damaged part of it does, and the best weights."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.conftest import STABILITY, TERNARY, TRAIN, toy_model
from tests.training.test_fit import rows, stopping_at

from trilith.files import remove
from trilith.model import ModelConfig, Transformer
from trilith.quant import QuantConfig
from trilith.training.batches import Batch
from trilith.training.fit import Plan, RunPlace, TrainConfig, fit
from trilith.training.held_out import HeldOutStop
from trilith.training.module import Loss, next_token_objective

CALM = replace(TRAIN, stability=replace(STABILITY, spike_sigmas=1e9))
BEST = replace(CALM, result="best")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def fill_with_garbage(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * (path.stat().st_size // 256))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


Damage = Callable[[Path], None]
each_damage = pytest.mark.parametrize("damage", [truncate, empty, fill_with_garbage, flip_a_bit])


def states(place: RunPlace) -> list[Path]:
    return sorted(place.resume_dir.glob("step-*.ckpt"))


def worse_after(step: int, seen: dict[str, Any] | None = None) -> Any:
    """An objective that unlearns after so many steps; leaves the weights of then in `seen`."""
    calls = 0

    def objective(model: Transformer, batch: Batch) -> Loss:
        nonlocal calls
        calls += 1
        loss = next_token_objective(model, batch)
        if calls == step + 1 and seen is not None:
            seen.update({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return loss if calls <= step else Loss(-loss.total, loss.nats)

    return objective


def validation_loss(model: Transformer, plan: Plan) -> float:
    with torch.no_grad():
        losses = [next_token_objective(model, plan.validation.batch(i)).nats for i in range(2)]
    return float(torch.stack(losses).mean())


@each_damage
@pytest.mark.parametrize("num_damaged", [1, 2])
def test_a_damaged_state_falls_back_to_the_one_before(
    toy: ModelConfig,
    plan: Plan,
    place: RunPlace,
    caplog: pytest.LogCaptureFixture,
    damage: Damage,
    num_damaged: int,
) -> None:
    whole = toy_model(toy)
    fit(whole, plan=plan, config=TRAIN, place=place)
    expected = [row["loss_nats"] for row in rows(place.metrics_dir / "steps.csv")]
    remove(place.resume_dir)
    broken = plan._replace(objective=stopping_at(13, RuntimeError))
    with pytest.raises(RuntimeError):
        fit(toy_model(toy), plan=broken, config=TRAIN, place=place)
    kept = states(place)
    assert [path.name for path in kept] == ["step-00000005.ckpt", "step-00000010.ckpt"]
    for path in kept[-num_damaged:]:
        damage(path)
    resumed = toy_model(toy)
    with caplog.at_level("INFO"):
        fit(resumed, plan=plan, config=TRAIN, place=place)
    for path in kept[-num_damaged:]:
        assert f"{path} is damaged" in caplog.text
    assert (f"goes on from {kept[0]}" in caplog.text) == (num_damaged == 1)
    assert [row["loss_nats"] for row in rows(place.metrics_dir / "steps.csv")] == expected
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_stop_where_the_dense_phase_ends_changes_no_bit(
    toy: ModelConfig, plan: Plan, place: RunPlace
) -> None:
    fitted = QuantConfig("ternary", "least_squares", "row", None, 8)
    half = plan._replace(recipe=replace(plan.recipe, dense_share=0.5))
    whole, resumed = toy_model(toy, fitted), toy_model(toy, fitted)
    fit(whole, plan=half, config=TRAIN, place=place)
    remove(place.resume_dir)
    # The state that is left is that of step 10, where the grid comes in.
    with pytest.raises(RuntimeError):
        broken = half._replace(objective=stopping_at(11, RuntimeError))
        fit(toy_model(toy, fitted), plan=broken, config=TRAIN, place=place)
    fit(resumed, plan=half, config=TRAIN, place=place)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


@pytest.mark.parametrize("keep_last", [1, 3])
def test_the_last_states_are_kept_and_the_best_weights(
    toy: ModelConfig, plan: Plan, place: RunPlace, keep_last: int
) -> None:
    config = replace(TRAIN, keep_last=keep_last)
    fit(toy_model(toy), plan=plan, config=config, place=place)
    assert [int(path.stem[5:]) for path in states(place)] == [5, 10, 15, 20][-keep_last:]
    (best,) = place.resume_dir.glob("best-*")
    validations = rows(place.metrics_dir / "validation.csv")
    lowest = min(validations, key=lambda row: float(row["loss_nats"]))
    assert best.name == f"best-{int(lowest['step']):08d}.ckpt"
    assert len(list(place.resume_dir.iterdir())) == keep_last + 1, "something else is left"


@pytest.mark.parametrize(("result", "step"), [("last", 20), ("best", 10)])
def test_a_run_hands_on_the_last_weights_or_the_best(
    toy: ModelConfig, plan: Plan, place: RunPlace, result: Any, step: int
) -> None:
    seen: dict[str, Any] = {}
    model = toy_model(toy)
    worse = plan._replace(objective=worse_after(10, seen))
    metrics = fit(model, plan=worse, config=replace(CALM, result=result), place=place)
    assert metrics["train/result_step"] == step
    assert metrics["train/num_steps"] == 20
    assert metrics["validation/loss_nats"] == pytest.approx(validation_loss(model, plan), rel=1e-5)
    equal = [torch.equal(tensor, seen[name]) for name, tensor in model.state_dict().items()]
    assert all(equal) == (result == "best")


def test_the_best_survives_a_stop_and_may_be_the_validation_after_the_last_step(
    toy: ModelConfig, plan: Plan, place: RunPlace
) -> None:
    broken = plan._replace(objective=stopping_at(13, RuntimeError))
    with pytest.raises(RuntimeError):
        fit(toy_model(toy), plan=broken, config=BEST, place=place)
    # From step 10 on only worse: the best stays that of step 10, before the stop.
    stopped = toy_model(toy)
    worse = plan._replace(objective=worse_after(0))
    assert fit(stopped, plan=worse, config=BEST, place=place)["train/result_step"] == 10
    remove(place.resume_dir)
    better = plan._replace(num_steps=13)
    assert fit(toy_model(toy), plan=better, config=BEST, place=place)["train/result_step"] == 13


def test_a_run_killed_after_its_early_stop_does_not_train_on(
    toy: ModelConfig, plan: Plan, place: RunPlace
) -> None:
    def stopping() -> Plan:
        return plan._replace(
            stop=HeldOutStop(1, lambda _: None), objective=worse_after(5), num_steps=40
        )

    config = replace(CALM, validate_every=5)
    stopped, resumed = toy_model(toy), toy_model(toy)
    first = fit(stopped, plan=stopping(), config=config, place=place)
    assert first["train/last_step"] == 10
    # Whoever called was killed before the model was safe: the resume state is still there.
    second = fit(resumed, plan=stopping(), config=config, place=place)
    for key in ("train/last_step", "train/result_step", "validation/loss_nats"):
        assert second[key] == first[key], key
    for name, tensor in stopped.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


@each_damage
def test_damaged_best_weights_fall_back_to_the_last(
    toy: ModelConfig,
    plan: Plan,
    place: RunPlace,
    caplog: pytest.LogCaptureFixture,
    damage: Damage,
) -> None:
    last = toy_model(toy)
    worse = plan._replace(objective=worse_after(10))
    fit(last, plan=worse, config=CALM, place=place)
    (best,) = place.resume_dir.glob("best-*")
    damage(best)
    again = toy_model(toy)
    metrics = fit(again, plan=plan, config=BEST, place=place)
    assert f"{best} is damaged" in caplog.text
    assert "the result is the last step's weights" in caplog.text
    assert metrics["train/result_step"] == 20
    for name, tensor in last.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_the_dense_phase_of_a_model_on_a_grid_has_no_best(
    toy: ModelConfig, plan: Plan, place: RunPlace
) -> None:
    recipe = replace(plan.recipe, dense_share=0.5)
    worse = plan._replace(objective=worse_after(10), recipe=recipe)
    often = replace(BEST, validate_every=5)
    metrics = fit(toy_model(toy, TERNARY), plan=worse, config=often, place=place)
    losses = {row["step"]: row["loss_nats"] for row in rows(place.metrics_dir / "validation.csv")}
    assert float(losses["10"]) < float(losses["15"]) < float(losses["20"])
    assert metrics["train/result_step"] == 15


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep_last": 0}, r"train\.keep_last=0 must be at least 1"),
        ({"result": "first"}, r"train\.result='first' is not known; choose last or best"),
    ],
)
def test_a_value_without_a_meaning_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**(vars(TRAIN) | changes))
