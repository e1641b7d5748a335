"""What an optimizer step costs: seconds by part, and memory; no wait for the device on CUDA."""

import resource
import sys
import time
from functools import cache
from typing import NamedTuple

import torch
from lightning.pytorch.profilers import Profiler

from trilith.files import STEP_PARTS

# A moment: seconds of the host's clock, or an event in the stream of the device.
Mark = float | torch.cuda.Event

# The actions that Lightning announces, without their owner, where each part begins and ends.
_BEGIN = ("train_dataloader_next", "training_step", "backward", "on_before_optimizer_step")
_END = ("batch_to_device", "training_step", "backward", "optimizer_step")
_PART_BEGUN = dict(zip(_BEGIN, STEP_PARTS, strict=True))
_PART_ENDED = dict(zip(_END, STEP_PARTS, strict=True))


class StepMarks(NamedTuple):
    """When the parts of a step began and ended; on CUDA readable once the device is there."""

    intervals: list[tuple[str, Mark, Mark]]
    end: Mark

    def seconds(self) -> dict[str, float]:
        """Return `step_s`, from asking for the first batch to the end, and each of STEP_PARTS."""
        _, begin, _ = self.intervals[0]
        seconds = {"step_s": _seconds(begin, self.end)} | dict.fromkeys(STEP_PARTS, 0.0)
        for part, begin, end in self.intervals:
            seconds[part] += _seconds(begin, end)
        # The clocks' noise is larger than what is cut off here.
        return {name: round(value, 6) for name, value in seconds.items()}


class StepClock(Profiler):
    """Marks where the parts of a step begin and end, as Lightning announces them.

    Validation, saving and logging lie between the steps and belong to none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.device = torch.device("cpu")
        self._begun: dict[str, Mark] = {}
        self._intervals: list[tuple[str, Mark, Mark]] = []

    def start(self, action_name: str) -> None:
        """Mark the beginning of a part, if this action begins one."""
        part, _ = _parts(action_name)
        if part is not None and part not in self._begun:
            self._begun[part] = self._mark()

    def stop(self, action_name: str) -> None:
        """Mark the end of a part, if this action ends one that has begun."""
        _, part = _parts(action_name)
        if part is not None and part in self._begun:
            self._intervals.append((part, self._begun.pop(part), self._mark()))

    def take(self) -> StepMarks:
        """End the step here; return its marks and begin anew."""
        marks = StepMarks(self._intervals, self._mark())
        self._intervals = []
        self._begun.clear()
        return marks

    def _mark(self) -> Mark:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def memory_bytes(device: torch.device) -> int:
    """Highest memory so far: of the tensors on a CUDA device, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # The system counts bytes on macOS, KiB elsewhere.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# Lightning announces about a hundred actions a step, always the same.
@cache
def _parts(action_name: str) -> tuple[str | None, str | None]:
    """Return the part that begins with this action, and the one that ends with it."""
    name = action_name.rpartition(".")[2]
    return _PART_BEGUN.get(name), _PART_ENDED.get(name)


def _seconds(begin: Mark, end: Mark) -> float:
    if isinstance(begin, float) and isinstance(end, float):
        return end - begin
    assert isinstance(begin, torch.cuda.Event) and isinstance(end, torch.cuda.Event)
    return begin.elapsed_time(end) / 1000
