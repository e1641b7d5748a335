"""The choices of `trilith memory`: a model or a packed file, training, generation, a device."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from trilith.cli.project import compose_plan

if TYPE_CHECKING:
    from trilith.model import CacheConfig
    from trilith.runtime import InferenceSetup
    from trilith.training.memory import TrainingSetup

Variant = Literal["dense", "ternary"]
Kind = Literal["cpu", "cuda"]

# What decides about generation, of a configured model and of a packed file.
_GENERATION = (
    *("context", "batch", "prompt", "running", "kept"),
    *("cache_bits", "window", "sinks", "layers", "device"),
)
_OWN = (*_GENERATION, "variant")
_TRAIN_KEYS = (
    "train.precision",
    "train.accumulate",
    "train.acceleration.arithmetic",
    "train.acceleration.checkpoint_activations",
)


class Target(NamedTuple):
    """The device of a plan."""

    name: str
    kind: Kind
    memory_bytes: int
    overhead_bytes: int


class Plan(NamedTuple):
    """What is asked for, checked; `trained_context` is what conf/ says of the model."""

    training: "TrainingSetup"
    generation: "InferenceSetup"
    trained_context: int
    target: Target


class FilePlan(NamedTuple):
    """What is asked of a packed file, checked."""

    generation: "InferenceSetup"
    target: Target


def named_file(choices: Sequence[str]) -> Path | None:
    """Return the packed file among the choices, which comes first, if there is one."""
    path = Path(choices[0])
    is_file = "=" not in choices[0] and (path.suffix == ".safetensors" or path.is_file())
    return path if is_file else None


def read_file_plan(path: Path, choices: Sequence[str]) -> FilePlan:
    """Turn a packed file and the choices that follow it into a plan of generation.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a choice is unknown or impossible, or the file is foreign.
    """
    from trilith.packed import open_unchecked
    from trilith.runtime.room import setup_of

    own = _own_choices(choices)
    if others := [choice for choice in choices if choice.partition("=")[0] not in _GENERATION]:
        raise ValueError(
            f"{others[0]} has no effect on the packed file {path}; what has: "
            f"{', '.join(_GENERATION)}"
        )
    target = _target(own.get("device"))
    setup = setup_of(open_unchecked(path), cache=_cache(own), layers="held")
    context = _count("context", own.get("context", setup.model.context))
    if context > setup.model.context and setup.cache.window is None:
        raise ValueError(
            f"context={context} is longer than the {setup.model.context} tokens of {path}; "
            "shorten it, or set a window"
        )
    return FilePlan(_generating(setup, own, target, context=context), target)


def read_plan(choices: Sequence[str]) -> Plan:
    """Turn the choices of the command line into a plan; what they leave open, conf/ says.

    Raises:
        ValueError: a choice is unknown, impossible or has no effect on memory.
    """
    own = _own_choices(choices)
    overrides = [choice for choice in choices if choice.partition("=")[0] not in own]
    variant = _variant(own.get("variant", "ternary"))
    target = _target(own.get("device"))
    for override in overrides:
        _require_effect(override, variant, target.kind)
    return plan_of(compose_plan(overrides), own, target, variant=variant)


def plan_of(
    sections: dict[str, Any], own: dict[str, str], target: Target, *, variant: Variant = "ternary"
) -> Plan:
    """Plan what the composed sections say, and the command's own keys where given."""
    trained_context = sections["model"].context
    longest = max(trained_context, _count("context", own.get("context", trained_context)))
    model = replace(sections["model"], context=longest)
    return Plan(
        _training_setup(sections | {"model": model}, variant, own, target.kind),
        _generation_setup(sections | {"model": model}, variant, own, target),
        trained_context,
        target,
    )


def this_machine() -> Target:
    """The first GPU of this machine, else its memory."""
    return _target(None)


def _training_setup(
    sections: dict[str, Any], variant: Variant, own: dict[str, str], kind: Kind
) -> "TrainingSetup":
    """The training run of a twin by the composed sections."""
    from trilith.kernels import chosen_isa
    from trilith.quant import QuantConfig
    from trilith.training.memory import TrainingSetup

    train, twin = sections["train"], sections["pretrain"][variant]
    how = train["acceleration"]
    is_native = kind == "cpu" and how["arithmetic"] == "int8" and chosen_isa() is not None
    return TrainingSetup(
        model=sections["model"],
        quant=None if twin["quant"] is None else QuantConfig(**twin["quant"]),
        optimizer=twin["recipe"]["optimizer"],
        precision=train["precision"],
        context=_count("context", own.get("context", train["context"])),
        batch_size=_count("batch", own.get("batch", train["micro_batch_size"])),
        accumulate=_count("train.accumulate", train["accumulate"]),
        device=kind,
        arithmetic="tiles" if is_native else "tensors",
        kept="block inputs" if how["checkpoint_activations"] else "everything",
        z_loss=twin["recipe"]["z_loss"],
    )


def _generation_setup(
    sections: dict[str, Any], variant: Variant, own: dict[str, str], target: Target
) -> "InferenceSetup":
    from trilith.packed import DENSE, PackConfig
    from trilith.quant import QuantConfig
    from trilith.runtime import InferenceSetup

    model, quant = sections["model"], sections["pretrain"][variant]["quant"]
    context = _count("context", own.get("context", model.context))
    setup = InferenceSetup(
        model=model,
        quant=None if quant is None else QuantConfig(**quant),
        pack=DENSE if quant is None else PackConfig(**sections["pack"]),
        kernel="torch",
        context=context,
        prompt=context,
        batch_size=1,
        cache=_cache(own),
    )
    return _generating(setup, own, target, context=context)


def _generating(
    setup: "InferenceSetup", own: dict[str, str], target: Target, *, context: int
) -> "InferenceSetup":
    """A model's setup with what the command's own keys say."""
    from trilith.kernels import chosen_isa
    from trilith.runtime import Kernel

    window = setup.cache.window
    if window is not None and window > setup.model.context:
        raise ValueError(
            f"window={window} is wider than the context of {setup.model.context} tokens of model "
            f"{setup.model.name}; narrow it"
        )
    on_cpu: Kernel = "torch" if chosen_isa() is None else "native"
    return replace(
        setup,
        kernel=on_cpu if target.kind == "cpu" else "triton",
        context=context,
        prompt=_count("prompt", own.get("prompt", context)),
        batch_size=_count("batch", own.get("batch", 1)),
        running=_count("running", own.get("running", 1)),
        kept=_count("kept", own.get("kept", 0), least=0),
        layers=own.get("layers", "held"),  # type: ignore[arg-type]
    )


def _cache(own: dict[str, str]) -> "CacheConfig":
    from trilith.model import DEFAULT_SINKS, CacheConfig

    bits = _count("cache_bits", own.get("cache_bits", 32))
    if "window" not in own:
        if "sinks" in own:
            raise ValueError(f"sinks={own['sinks']} has no effect without window")
        return CacheConfig(bits)  # type: ignore[arg-type]
    sinks = _count("sinks", own.get("sinks", DEFAULT_SINKS), least=0)
    return CacheConfig(bits, _count("window", own["window"]), sinks)  # type: ignore[arg-type]


def _own_choices(choices: Sequence[str]) -> dict[str, str]:
    own: dict[str, str] = {}
    for choice in choices:
        key, equals, value = choice.partition("=")
        if not equals:
            raise ValueError(f"{choice!r} is not KEY=VALUE, such as model=7b")
        if key in own:
            raise ValueError(f"{key} is given twice: {own[key]} and {value}; give it once")
        if key in _OWN:
            own[key] = value
    return own


def _variant(name: str) -> Variant:
    if name == "dense":
        return "dense"
    if name == "ternary":
        return "ternary"
    raise ValueError(f"variant={name!r} is not a twin; choose dense or ternary")


def _require_effect(override: str, variant: Variant, kind: Kind) -> None:
    """Refuse an override that no figure of the plan depends on."""
    key = override.lstrip("+~").partition("=")[0]
    recipe = f"pretrain.{variant}.recipe"
    groups = ["model", "tokenizer", "train", f"recipe@{recipe}"]
    keys = ["tokenizer.vocab_size", *_TRAIN_KEYS, f"{recipe}.optimizer", f"{recipe}.z_loss"]
    prefixes = ["model."]
    if variant == "ternary":
        groups.append("quant")
        prefixes.append("quant.")
        # On a GPU codes are laid out anew, and embedding and head are float32.
        if kind == "cpu":
            groups.append("pack")
            prefixes.append("pack.")
    if key in (*groups, *keys) or key.startswith(tuple(prefixes)):
        return
    raise ValueError(
        f"{override} has no effect on the memory of variant={variant} on a "
        f"{'CPU' if kind == 'cpu' else 'GPU'}; what has: "
        f"{', '.join((*_OWN, *groups, *keys, *(f'{p}*' for p in prefixes)))}"
    )


def _count(key: str, value: Any, *, least: int = 1) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = least - 1
    if number < least or isinstance(value, bool):
        raise ValueError(f"{key}={value} must be a whole number of at least {least}")
    return number


def _target(name: str | None) -> Target:
    import torch

    from trilith.hardware import OVERHEAD_BYTES, device_name, device_named, host_memory_bytes

    if name == "cpu" or (name is None and not torch.cuda.is_available()):
        return Target("this machine", "cpu", host_memory_bytes(), OVERHEAD_BYTES["cpu"])
    if name is None:
        name, memory_bytes = device_name(), torch.cuda.get_device_properties(0).total_memory
        return Target(name, "cuda", memory_bytes, OVERHEAD_BYTES["cuda"])
    try:
        memory_bytes = device_named(name).memory_bytes
    except ValueError as error:
        raise ValueError(f"{error}; or cpu for this machine") from None
    return Target(name, "cuda", memory_bytes, OVERHEAD_BYTES["cuda"])
