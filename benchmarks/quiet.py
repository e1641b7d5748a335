"""Was the machine left to us? Samples taken while other processes ran are thrown away."""

import os
import resource
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
# Columns of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal.
_IDLE, _IOWAIT, _NUM_COLUMNS = 3, 4, 8


def watch(measure: Callable[[], T]) -> tuple[T, float]:
    """Run `measure`; return its value and the cores (0..) that other processes used meanwhile.

    Time that a hypervisor gave to other machines counts as other work.
    """
    start_s, busy, own = time.perf_counter(), _busy_s(), _own_s()
    value = measure()
    elapsed_s = time.perf_counter() - start_s
    other_s = (_busy_s() - busy) - (_own_s() - own)
    return value, max(0.0, other_s / elapsed_s)


def _busy_s() -> float:
    with open("/proc/stat") as file:  # noqa: PTH123 (a device file, not a path of ours)
        ticks = [int(word) for word in file.readline().split()[1 : 1 + _NUM_COLUMNS]]
    idle = ticks[_IDLE] + ticks[_IOWAIT]
    return (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    """Processor time of this process and of the children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
