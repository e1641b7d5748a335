"""When a step is bad: robust z-scores over a window, and limits on what the codes may do.

Plain numbers in, a fault out; where they come from is `signals.py`, what follows `stability.py`.
"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from statistics import median
from typing import Literal, NamedTuple, get_args

Signal = Literal[
    "not_finite", "loss", "grad_norm", "update", "foreign_change",
    "flip_burst", "zero_drift", "scale_jump",
]  # fmt: skip
SIGNALS: tuple[Signal, ...] = get_args(Signal)
_Finding = tuple[Signal, str]

# Turns a median absolute change between neighbours into the standard deviation of a Gaussian:
# 1.4826 for the median absolute deviation, over the square root of 2 for the difference of two.
_CHANGE_TO_SIGMA = 1.4826 / math.sqrt(2)
# At least so many values make the center of a window.
_MIN_LATEST = 8
# A run of equal losses must not make every small change a spike.
_MIN_LOSS_SIGMA = 0.02
# The same for logarithms. At 10 sigmas a gradient or an update passes up to 12 times the median:
# the worst clean batch of the default run has 4.8 times (step 585 of the ternary twin).
_MIN_LOG_SIGMA = 0.25
# Fewer flips than this are as good as none.
_FLIP_FLOOR = 0.01


@dataclass(frozen=True)
class StabilityConfig:
    """When a step is bad, and what is done about it. Windows and intervals count steps.

    `spike_sigmas` holds for loss, gradient norm, update size and flip rate. Every `grid_every`
    steps the codes are measured: the zero share may lie `max_zero_drift` beside its median over
    the window, a scale may change by `max_scale_factor` from one measure to the next.
    """

    window: int
    min_history: int
    spike_sigmas: float
    grid_every: int
    max_zero_drift: float
    max_scale_factor: float
    snapshot_every: int
    lr_factor: float
    recovery_steps: int
    max_rollbacks: int

    def __post_init__(self) -> None:
        if not 2 <= self.min_history <= self.window:
            raise ValueError(
                f"stability.min_history={self.min_history} must lie in 2..window={self.window}"
            )
        if not 0 < self.lr_factor <= 1 or self.recovery_steps < 1 or self.max_rollbacks < 0:
            raise ValueError(
                f"stability: lr_factor={self.lr_factor} must lie in (0, 1], recovery_steps="
                f"{self.recovery_steps} be at least 1 and max_rollbacks={self.max_rollbacks} not "
                "be negative"
            )
        if self.grid_every < 1 or self.snapshot_every < 1 or self.snapshot_every % self.grid_every:
            raise ValueError(
                f"stability.snapshot_every={self.snapshot_every} must be a multiple of grid_every="
                f"{self.grid_every}, so that the codes of each snapshot are known to be good"
            )
        if self.spike_sigmas <= 0 or self.max_zero_drift <= 0 or self.max_scale_factor <= 1:
            raise ValueError(
                f"stability: spike_sigmas={self.spike_sigmas} and max_zero_drift="
                f"{self.max_zero_drift} must be positive, max_scale_factor="
                f"{self.max_scale_factor} larger than 1"
            )

    @property
    def max_lost_steps(self) -> int:
        """Steps that all rollbacks together can undo: each goes back to one of two snapshots."""
        return self.max_rollbacks * 2 * self.snapshot_every


class StepSignals(NamedTuple):
    """What an optimizer step says of itself; the order is that of the vector on the device."""

    loss_nats: float
    grad_norm: float  # before clipping
    update_size: float  # root mean square change of the sampled weights, without LR cuts
    foreign_change: float  # 1 if the weights changed other than by the optimizer, else 0


class GridSignals(NamedTuple):
    """What the sampled codes and the scales say, compared with the measure before."""

    flip_rate: float  # share of codes that changed
    zero_share: float  # share of codes on level zero
    scale_shift: float  # largest change of the logarithm of a scale


class Fault(NamedTuple):
    """Which signal of which optimizer step was bad, and how."""

    step: int
    signal: Signal
    detail: str


class RobustWindow:
    """The last values of a signal, and how far above them a new one lies.

    Center is the median of the latest values, sigma comes from the median change from one value to
    the next over the whole window: a loss that falls steadily has as small a sigma as one at rest,
    and a few outliers count little.
    """

    def __init__(self, size: int, *, min_history: int, min_sigma: float) -> None:
        self.values: deque[float] = deque(maxlen=size)
        self.min_history = min_history
        self.min_sigma = min_sigma

    @property
    def is_ready(self) -> bool:
        """True if there is enough to compare with."""
        return len(self.values) >= self.min_history

    @property
    def center(self) -> float:
        """The median of the latest values."""
        num_latest = max(_MIN_LATEST, len(self.values) // 8)
        return median(islice(reversed(self.values), num_latest))

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise, as if it were Gaussian and independent."""
        change = median(abs(after - before) for before, after in pairwise(self.values))
        return max(self.min_sigma, _CHANGE_TO_SIGMA * change)

    def sigmas_above(self, value: float, *, limit: float) -> float | None:
        """Return the robust z-score of a value if it is beyond the limit, None otherwise."""
        if not self.is_ready:
            return None
        distance = value - self.center
        # Nearly all end here, without the cost of the deviation.
        if distance <= limit * self.min_sigma:
            return None
        sigmas = distance / self.sigma
        return sigmas if sigmas > limit else None


class Detector:
    """Judges the steps of a run in order; what is bad never enters the windows."""

    def __init__(self, config: StabilityConfig) -> None:
        self.config = config
        # The codes are measured less often; their windows span as many steps.
        num_measures = max(2, config.window // config.grid_every)
        min_measures = max(2, config.min_history // config.grid_every)
        steps = partial(RobustWindow, config.window, min_history=config.min_history)
        measures = partial(RobustWindow, num_measures, min_history=min_measures)
        self.windows = {
            "loss": steps(min_sigma=_MIN_LOSS_SIGMA),
            "grad_norm": steps(min_sigma=_MIN_LOG_SIGMA),
            "update": steps(min_sigma=_MIN_LOG_SIGMA),
            "flip_burst": measures(min_sigma=_MIN_LOG_SIGMA),
            "zero_drift": measures(min_sigma=0.0),
        }

    def check(self, step: int, signals: StepSignals, grid: GridSignals | None) -> Fault | None:
        """Say why this step is bad, or take its signals into the windows and return None."""
        found = _cause(signals, grid) or self._check_step(signals)
        if found is None and grid is not None:
            found = self._check_grid(grid)
        if found is not None:
            return Fault(step, *found)
        self._take_in(signals, grid)
        return None

    def forget(self) -> None:
        """Empty the windows: the steps to come are not comparable with those before."""
        for window in self.windows.values():
            window.values.clear()

    def state_dict(self) -> dict[str, list[float]]:
        """Return the windows."""
        return {name: list(window.values) for name, window in self.windows.items()}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Restore the windows."""
        self.forget()
        for name, values in state.items():
            self.windows[name].values.extend(values)

    def _check_step(self, signals: StepSignals) -> _Finding | None:
        sigmas = self._sigmas("loss", signals.loss_nats)
        if sigmas is not None:
            usual = self.windows["loss"].center
            return "loss", f"{signals.loss_nats:.3f} is {sigmas:.1f} sigmas above {usual:.3f}"
        sizes: dict[Signal, float] = {
            "grad_norm": signals.grad_norm,
            "update": signals.update_size,
        }
        for signal, value in sizes.items():
            sigmas = self._sigmas(signal, _log(value))
            if sigmas is not None:
                usual = math.exp(self.windows[signal].center)
                return signal, f"{value:.3g} is {sigmas:.1f} sigmas above {usual:.3g}"
        return None

    def _check_grid(self, grid: GridSignals) -> _Finding | None:
        sigmas = self._sigmas("flip_burst", _log(grid.flip_rate + _FLIP_FLOOR))
        if sigmas is not None:
            return "flip_burst", f"{grid.flip_rate:.1%} of codes flipped, {sigmas:.1f} sigmas more"
        zeros = self.windows["zero_drift"]
        if zeros.is_ready and abs(grid.zero_share - zeros.center) > self.config.max_zero_drift:
            told = f"{grid.zero_share:.1%} of codes are zero, before {zeros.center:.1%}"
            return "zero_drift", told
        if grid.scale_shift > math.log(self.config.max_scale_factor):
            return "scale_jump", f"a scale changed {math.exp(min(99, grid.scale_shift)):.3g} times"
        return None

    def _sigmas(self, signal: Signal, value: float) -> float | None:
        return self.windows[signal].sigmas_above(value, limit=self.config.spike_sigmas)

    def _take_in(self, signals: StepSignals, grid: GridSignals | None) -> None:
        self.windows["loss"].values.append(signals.loss_nats)
        self.windows["grad_norm"].values.append(_log(signals.grad_norm))
        self.windows["update"].values.append(_log(signals.update_size))
        if grid is not None:
            self.windows["flip_burst"].values.append(_log(grid.flip_rate + _FLIP_FLOOR))
            self.windows["zero_drift"].values.append(grid.zero_share)


def diagnosis(faults: Iterable[Fault]) -> str:
    """Say which signals were bad at which steps, and what to try against the most frequent one."""
    faults = list(faults)
    by_signal = {signal: [f for f in faults if f.signal == signal] for signal in SIGNALS}
    told = [f"{signal} {_steps(bad)}" for signal, bad in by_signal.items() if bad]
    worst = max(SIGNALS, key=lambda signal: len(by_signal[signal]))
    return f"{'; '.join(told)} (last: {faults[-1].detail}); {_ADVICE[worst]}"


_RATE = "lower recipe.peak_lr or lengthen recipe.warmup_steps"
_ADVICE: dict[Signal, str] = {
    "not_finite": f"{_RATE}; at bf16-mixed also try train.precision=32-true",
    "loss": f"{_RATE}, and check the data that these steps read",
    "grad_norm": f"{_RATE}, lower recipe.clip_norm, and check the data that these steps read",
    "update": f"{_RATE}, and check whatever sets the learning rate",
    "foreign_change": "test the memory of this machine, and look for code that writes to weights",
    "flip_burst": f"{_RATE}, or train dense for longer (recipe.dense_share)",
    "zero_drift": f"{_RATE}, or choose quant.scale_rule=least_squares",
    "scale_jump": f"{_RATE}, or choose another quant.granularity",
}


def _steps(faults: list[Fault]) -> str:
    if len(faults) > 8:
        return f"at {len(faults)} steps from {faults[0].step} to {faults[-1].step}"
    steps = ", ".join(str(fault.step) for fault in faults)
    return f"at step {steps}" if len(faults) == 1 else f"at steps {steps}"


def _cause(signals: StepSignals, grid: GridSignals | None) -> _Finding | None:
    """What is bad by itself, the cause before its effects."""
    if signals.foreign_change:
        return "foreign_change", "weights changed between two optimizer steps"
    values = signals._asdict() | (grid._asdict() if grid is not None else {})
    bad = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    return ("not_finite", ", ".join(bad)) if bad else None


def _log(value: float) -> float:
    """Logarithm of a size; a zero, as at a learning rate of zero, is the smallest float."""
    return math.log(max(value, 1e-30))
