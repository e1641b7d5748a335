"""Options that generating commands share: how tokens are drawn, and on how many threads."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trilith.runtime import SamplingConfig


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


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add --device."""
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda or cuda:N")


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
