"""The plan of a training run against what torch saves, allocates and keeps."""

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.memory_peak import peak_bytes, storage_bytes
from tests.model.test_zoo import shape
from tests.training.conftest import RECIPE, TRAIN
from torch import Tensor

from trilith.kernels import chosen_isa
from trilith.model import ModelConfig, Transformer, build_model, count_parameters
from trilith.quant import QuantConfig
from trilith.training.acceleration import AccelerationConfig, accelerated
from trilith.training.batches import Batch, TokenWindows
from trilith.training.fit import Plan, RunPlace, fit
from trilith.training.memory import TrainingSetup, plan_training
from trilith.training.module import next_token_objective, start_quantized_step
from trilith.training.recipe import build_optimizer

ROW = QuantConfig("ternary", "least_squares", "row", None, 8)
LEARNED = QuantConfig("ternary", "learned", "row", None, 8)
TENSOR = QuantConfig("ternary", "absmean", "tensor", None, 8)
GROUP = QuantConfig("prime7", "least_squares", "group", 32, 8)
WEIGHTS_ALONE = QuantConfig("ternary", "absmean", "tensor", None, None)
SMALL = ModelConfig("s", 400, 64, 2, 4, 2, "swiglu", 160, 512, 1e4, 1e-6, True, True, True)
# Shape, quantization, precision: each differs from the first in a few points.
VARIANTS: list[tuple[dict[str, Any], QuantConfig | None, Any]] = [
    ({}, ROW, "32-true"),
    ({}, None, "32-true"),
    ({}, ROW, "bf16-mixed"),
    ({}, None, "bf16-mixed"),
    ({"num_kv_heads": 4}, GROUP, "32-true"),
    ({"num_kv_heads": 4, "qk_norm": False}, None, "32-true"),
    ({"num_kv_heads": 4, "qk_norm": False}, TENSOR, "bf16-mixed"),
    ({"qk_norm": False, "sub_norm": False, "tied_head": False}, TENSOR, "32-true"),
    ({"sub_norm": False, "mlp": "gated_relu2"}, None, "bf16-mixed"),
    ({"sub_norm": False, "mlp": "relu2"}, ROW, "32-true"),
    ({"mlp": "gated_relu2"}, ROW, "bf16-mixed"),
    ({"mlp": "relu2"}, None, "32-true"),
    ({"sub_norm": False}, WEIGHTS_ALONE, "32-true"),
    ({"qkv_bias": True, "qk_norm": False}, None, "bf16-mixed"),
]


def setup_of(config: ModelConfig, quant: QuantConfig | None, **changes: Any) -> TrainingSetup:
    """A run on a GPU, where no snapshot lies beside it, but measured on the CPU."""
    given: dict[str, Any] = {"optimizer": "adamw", "precision": "32-true", "device": "cuda"}
    given |= {"context": 64, "batch_size": 2, "accumulate": 2}
    given |= {"arithmetic": native_or_not(), "kept": "everything", "z_loss": 0.0}
    return TrainingSetup(config, quant, **(given | changes))


def native_or_not() -> str:
    """What projections on a grid compute with on this machine."""
    return "tensors" if chosen_isa() is None else "tiles"


def autocast(setup: TrainingSetup, device: str = "cpu") -> AbstractContextManager[Any]:
    return torch.autocast(device, torch.bfloat16, enabled=setup.precision == "bf16-mixed")


def model_and_batch(setup: TrainingSetup) -> tuple[Transformer, Batch]:
    torch.manual_seed(0)
    size = (setup.batch_size, setup.context)
    tokens = torch.randint(0, setup.model.vocab_size, size)
    return build_model(setup.model, setup.quant).train(), Batch(tokens, tokens.roll(-1))


def saved_bytes(setup: TrainingSetup) -> int:
    """Bytes that autograd keeps of one forward pass, beside weights and buffers."""
    model, batch = model_and_batch(setup)
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast(setup):
        next_token_objective(model, batch, z_loss=setup.z_loss)
    return storage_bytes(saved)


def step_peak(setup: TrainingSetup) -> int:
    """Most bytes of a model and two micro-batches of a step, its update left out."""
    how = AccelerationConfig(
        arithmetic="float" if setup.arithmetic == "tensors" else "int8",
        compile=False,
        checkpoint_activations=setup.kept == "block inputs",
    )

    def step() -> None:
        model, batch = model_and_batch(setup)
        with accelerated(model, how, torch.device("cpu")):
            with autocast(setup):
                start_quantized_step(model, step=0, num_steps=1, recipe=RECIPE)
            for _ in range(2):
                with autocast(setup):
                    loss = next_token_objective(model, batch, z_loss=setup.z_loss).total
                loss.backward()

    return peak_bytes(step)


def planned_step(setup: TrainingSetup) -> int:
    """The same by the plan."""
    return plan_training(setup).total - plan_training(setup).optimizer


@pytest.mark.parametrize(("changes", "quant", "precision"), VARIANTS, ids=str)
def test_activations_are_what_autograd_saves(
    changes: dict[str, Any], quant: QuantConfig | None, precision: Any
) -> None:
    setup = setup_of(replace(SMALL, **changes), quant, precision=precision, arithmetic="tensors")
    plan = plan_training(setup)
    saved = plan.activations + plan.weight_copies
    if quant is not None:
        # The step holds its whole numbers; autograd keeps their products with the scales.
        saved -= count_parameters(setup.model).projections
    # Tables of rotations, shared by all sequences, are not in the plan.
    assert saved == pytest.approx(saved_bytes(setup), rel=0.02)


STEPS: list[tuple[Any, dict[str, Any]]] = [
    *((variant, {}) for variant in VARIANTS[:5]),
    (VARIANTS[0], {"arithmetic": "tensors"}),
    (VARIANTS[0], {"z_loss": 1e-4}),
    *((variant, {"kept": "block inputs"}) for variant in (VARIANTS[0], VARIANTS[3])),
]


@pytest.mark.parametrize(("variant", "how"), STEPS, ids=str)
def test_a_step_peaks_where_the_plan_says(variant: Any, how: dict[str, Any]) -> None:
    changes, quant, precision = variant
    config = replace(SMALL, num_layers=4, **changes)
    setup = setup_of(config, quant, precision=precision, **how)
    assert planned_step(setup) == pytest.approx(step_peak(setup), rel=0.05)


@pytest.mark.parametrize(
    ("name", "vocab_size", "batch_size", "context"),
    [
        ("nano", 2048, 2, 256),
        ("micro", 2048, 1, 256),
        pytest.param("125m", 8192, 1, 256, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("quant", [None, TENSOR], ids=["dense", "ternary"])
def test_the_sizes_of_the_zoo_take_what_is_planned(
    name: str, vocab_size: int, batch_size: int, context: int, quant: QuantConfig | None
) -> None:
    setup = setup_of(shape(name, vocab_size), quant, context=context, batch_size=batch_size)
    assert planned_step(setup) == pytest.approx(step_peak(setup), rel=0.05)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(
    ("changes", "quant"), [({}, ROW), ({"tied_head": False}, None), ({}, LEARNED)], ids=str
)
def test_gradients_and_optimizer_state_are_planned_to_the_byte(
    changes: dict[str, Any], quant: QuantConfig | None, optimizer: Any
) -> None:
    setup = setup_of(replace(SMALL, **changes), quant, optimizer=optimizer, device="cpu")
    plan = plan_training(setup)
    model, batch = model_and_batch(setup)
    steps = build_optimizer(model, replace(RECIPE, optimizer=optimizer))
    next_token_objective(model, batch).total.backward()
    steps.step()
    assert plan.weights == storage_bytes([*model.parameters(), *model.buffers()])
    assert plan.gradients == storage_bytes(weight.grad for weight in model.parameters())
    state = {"model": model.state_dict(), "optimizer": steps.state_dict()}
    moments = [t for t in tensors_of(state["optimizer"]) if t.dim()]
    assert plan.optimizer == storage_bytes(moments)
    assert plan.snapshot == sum(tensor.nbytes for tensor in tensors_of(state) if tensor.dim())


def tensors_of(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    inside = state.values() if isinstance(state, dict) else state if isinstance(state, list) else []
    return [tensor for value in inside for tensor in tensors_of(value)]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_whole_run_stays_within_the_plan(place: RunPlace, accumulate: int) -> None:
    """From building the model to the last step, with snapshots, checkpoints and validation."""
    setup = setup_of(shape("nano", 2048), ROW, batch_size=2, accumulate=accumulate)
    setup = replace(setup, context=256, device="cpu")
    config = replace(TRAIN, context=256, micro_batch_size=2, accumulate=accumulate)
    tokens = np.random.default_rng(0).integers(0, 2048, 20_000).astype(np.uint16)
    windows = TokenWindows(tokens, context=256, batch_size=2, seed=0)
    plan = Plan(6, RECIPE, next_token_objective, windows, windows)

    def run() -> None:
        fit(build_model(setup.model, setup.quant), plan=plan, config=config, place=place)

    assert plan_training(setup).total == pytest.approx(peak_bytes(run), rel=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"context": -1}, "context=-1"),
        ({"precision": "16"}, "precision='16' must be one of 32-true, bf16-mixed"),
        ({"optimizer": "sgd"}, "optimizer='sgd' one of adamw, muon"),
    ],
)
def test_an_impossible_setup_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        setup_of(SMALL, None, **changes)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("quant", [None, ROW], ids=["dense", "ternary"])
def test_a_gpu_allocates_what_is_planned(quant: QuantConfig | None, precision: Any) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    setup = setup_of(shape("125m", 32_000), quant, precision=precision, context=1024)
    model, batch = model_and_batch(setup)
    model, batch = model.cuda(), Batch(batch.inputs_BT.cuda(), batch.targets_BT.cuda())
    optimizer = build_optimizer(model, RECIPE)
    for _ in range(2):
        with autocast(setup, "cuda"):
            start_quantized_step(model, step=0, num_steps=1, recipe=RECIPE)
        for _ in range(setup.accumulate):
            with autocast(setup, "cuda"):
                loss = next_token_objective(model, batch).total
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert plan_training(setup).total == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.05)
