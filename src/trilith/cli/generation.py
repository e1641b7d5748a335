"""Options that generating commands share: how tokens are drawn, and on how many threads."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trilith.model import CacheConfig
    from trilith.runtime import Engine, Layers, SamplingConfig


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `SamplingConfig`."""
    parser.add_argument("--temperature", type=float, default=0.7, help="0 takes the most likely")
    parser.add_argument("--top-k", type=int, metavar="K", help="draw from the K most likely tokens")
    parser.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest P")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, metavar="X")
    parser.add_argument("--seed", type=int, default=0)


def add_threads_option(parser: argparse.ArgumentParser) -> None:
    """Add --threads."""
    parser.add_argument("--threads", type=int, help="CPU threads; default: as torch chooses")


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Add --device, the options of `CacheConfig`, and --stream-layers."""
    parser.add_argument(
        "--device", default="cpu", metavar="NAME", help="cpu, cuda or cuda:N; default cpu"
    )
    parser.add_argument(
        "--cache-bits",
        type=int,
        default=32,
        metavar="BITS",
        help="of a number in the key/value cache: 32, 16, 8 or 4; default 32",
    )
    parser.add_argument(
        "--window", type=int, metavar="N", help="keep N tokens; generation then has no end"
    )
    parser.add_argument(
        "--sinks", type=int, metavar="N", help="first tokens that stay in the window; default 4"
    )
    parser.add_argument(
        "--stream-layers",
        action="store_true",
        help="read each block just before it runs: for models larger than the memory",
    )


def load_engine(options: argparse.Namespace, *, context: int | None) -> "Engine":
    """Load `options.file` as the options of `add_engine_options` say.

    Args:
        options: with these and `file`.
        context: tokens of a sequence for which there must be memory; None for the model's own.

    Raises:
        ValueError: a value is out of its range, or has no effect; there is no such device; or the
            file is damaged, or too large.
    """
    from trilith.runtime import Engine

    layers, cache = layers_of(options), cache_config(options)
    return Engine.load(
        options.file, cache=cache, layers=layers, device=options.device, context=context
    )


def require_sequence(engine: "Engine", context: int) -> None:
    """Refuse a sequence of more tokens than there is memory for.

    Raises:
        ValueError: the text says what needs less.
    """
    from trilith.runtime.room import require_memory

    layers: Layers = "held" if engine.stream is None else "streamed"
    require_memory(
        engine.file.path,
        cache=engine.cache_config,
        layers=layers,
        device=engine.device,
        context=context,
    )


def read_context(options: argparse.Namespace, engine: "Engine") -> int:
    """Return what --context says, or the model's own.

    Raises:
        ValueError: it is longer than the model's.
    """
    own = engine.config.context
    context = own if options.context is None else options.context
    if not 1 <= context <= own:
        raise ValueError(f"--context={context} must be in 1..{own}, the model's own")
    return context


def layers_of(options: argparse.Namespace) -> "Layers":
    """How the options of `add_engine_options` hold layers."""
    return "streamed" if options.stream_layers else "held"


def read_sampling(options: argparse.Namespace) -> "SamplingConfig":
    """Return what the options say.

    Raises:
        ValueError: a value is out of its range.
    """
    from trilith.runtime import SamplingConfig

    return SamplingConfig(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        repetition_penalty=options.repetition_penalty,
        seed=options.seed,
    )


def set_threads(options: argparse.Namespace) -> None:
    """Let torch and the kernels use as many threads as the option says.

    Raises:
        ValueError: fewer than one.
    """
    import torch

    if options.threads is None:
        return
    if options.threads < 1:
        raise ValueError(f"--threads={options.threads} must be at least 1")
    torch.set_num_threads(options.threads)


def cache_config(options: argparse.Namespace) -> "CacheConfig":
    """How the options of `add_engine_options` keep keys and values.

    Raises:
        ValueError: a value is out of its range, or has no effect.
    """
    from trilith.model import DEFAULT_SINKS, CacheConfig

    if options.sinks is not None and options.window is None:
        raise ValueError(f"--sinks={options.sinks} has no effect without --window")
    sinks = DEFAULT_SINKS if options.sinks is None else options.sinks
    return CacheConfig(options.cache_bits, options.window, sinks)
