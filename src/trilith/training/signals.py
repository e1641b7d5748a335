"""What the weights say of a step, measured on their device without waiting for it.

A step costs two whole-number sums over the weights and one pass over a sample of them.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from trilith.quant import BitLinear, fit_scale, quantize
from trilith.training.detector import GridSignals, StepSignals

# Of each weight, this many values tell the size of the update, and this many rows the codes.
_SAMPLED_VALUES = 256
_SAMPLED_ROWS = 8
# Words of a weight that is summed together with others.
_SHORT = 4096


class Reading(NamedTuple):
    """The signals of one optimizer step on their way to the host."""

    step: int
    values: Tensor
    copied: Any  # the CUDA event after the copy, None on a CPU

    def fetch(self) -> Tensor:
        """Return the values on the host; waits for this step's copy alone, not for later steps."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.values

    def signals(self) -> tuple[StepSignals, GridSignals | None]:
        """Return the signals of the step, and those of the codes where they were measured."""
        values = self.fetch().tolist()
        num_step = len(StepSignals._fields)
        grid = GridSignals(*values[num_step:]) if len(values) > num_step else None
        return StepSignals(*values[:num_step]), grid


class Codes(NamedTuple):
    """Codes and scales of the sampled rows of all layers, each in one vector."""

    codes: Tensor
    is_zero: Tensor
    log_scales: Tensor


class _Rows(NamedTuple):
    """Some rows of a quantized weight, as a view."""

    layer: BitLinear
    latent: Tensor
    places: slice  # of these rows in the whole weight


class WeightWatch:
    """Watches the weights of a model over its optimizer steps.

    Call `arm` before the first step and after anything but the optimizer has written to the
    weights, `look` right before the optimizer does, `read` after. `codes` are those that an
    earlier run measured last.
    """

    def __init__(self, model: nn.Module, *, codes: Codes | None = None) -> None:
        self.is_sharded = any(isinstance(weight, DTensor) for weight in model.parameters())
        weights = [local(parameter.detach()) for parameter in model.parameters()]
        words = [_as_words(weight) for weight in weights]
        self._long = [part for part in words if part.numel() > _SHORT]
        self._short = [part for part in words if part.numel() <= _SHORT]
        self._samples = [_sample(weight) for weight in weights]
        layers = [layer for layer in model.modules() if isinstance(layer, BitLinear)]
        self._rows = [_sampled_rows(layer) for layer in layers]
        self._sum: Tensor | None = None
        self._sample: Tensor | None = None
        self._is_foreign: Tensor | None = None
        self.codes = codes

    def arm(self) -> None:
        """Take the weights as they are for good, if nothing is known of them."""
        if self._sum is None:
            self._sum = self._checksum()
            self._sample = torch.cat(self._samples)

    def disarm(self) -> None:
        """Forget the weights: they have been replaced."""
        self._sum = self._sample = self.codes = None

    def look(self) -> None:
        """Compare the weights, bit for bit, with those that the optimizer left."""
        assert self._sum is not None
        self._is_foreign = self._checksum() != self._sum

    def read(
        self,
        step: int,
        *,
        loss_nats: Tensor,
        grad_norm: Tensor,
        lr_factor: float,
        with_grid: bool,
    ) -> Reading:
        """Gather the signals of a finished step in one vector and send it to the host.

        Args:
            step: number of the optimizer step.
            loss_nats: scalar on the weights' device.
            grad_norm: the same.
            lr_factor: divides the size of the update, so that a cut of the rate is no change.
            with_grid: measure the codes too; there are no signals of a first measure, or of a
                model that is dense.
        """
        assert self._sample is not None and self._is_foreign is not None
        sample = torch.cat(self._samples)
        update_size = (sample - self._sample).square_().mean().sqrt_() / lr_factor
        self._sample, self._sum = sample, self._checksum()
        values = [loss_nats, grad_norm, update_size, self._is_foreign]
        if with_grid:
            values += self._read_grid()
        device = sample.device
        vector = torch.stack([value.to(device, torch.float32) for value in values])
        return _send(step, _worst_of_all_processes(vector))

    def _checksum(self) -> Tensor:
        # Most weights are gains of norms: a call each would cost more than their sum.
        sums = [words.sum(dtype=torch.int64) for words in self._long]
        for dtype in {words.dtype for words in self._short}:
            together = torch.cat([words for words in self._short if words.dtype == dtype])
            sums.append(together.sum(dtype=torch.int64))
        return torch.stack(sums).sum()

    def _read_grid(self) -> list[Tensor]:
        before, self.codes = self.codes, _codes_of(self._rows)
        now = self.codes
        if now is None or before is None:
            return []
        return [
            (now.codes != before.codes).float().mean(),
            now.is_zero.float().mean(),
            (now.log_scales - before.log_scales).abs().max(),
        ]


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a sharded tensor, or the tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _codes_of(all_rows: list[_Rows]) -> Codes | None:
    codes, is_zero, log_scales = [], [], []
    for rows in all_rows:
        layer = rows.layer
        if layer.quantized_share < 1 or not len(rows.latent):
            continue
        kept = _kept_scale(layer)
        scale = fit_scale(rows.latent, layer.config) if kept is None else kept
        own_scale = scale[rows.places] if kept is not None and len(kept) > 1 else scale
        grid = layer.config.levels
        own = quantize(rows.latent, own_scale, grid).flatten()
        codes.append(own)
        if 0 in grid.numerators:
            is_zero.append(own == grid.numerators.index(0))
        # All scales where they are kept: a collapse strikes single rows.
        log_scales.append(scale.flatten().log())
    if not codes:
        return None
    no_zero = torch.zeros(1, dtype=torch.bool, device=codes[0].device)
    return Codes(torch.cat(codes), torch.cat(is_zero or [no_zero]), torch.cat(log_scales))


def _kept_scale(layer: BitLinear) -> Tensor | None:
    """The scales of all rows, unless the rule makes them anew from the weight."""
    if layer.log_scale is not None:
        log_scale = layer.log_scale.detach()
        return (log_scale.full_tensor() if isinstance(log_scale, DTensor) else log_scale).exp()
    return layer.scale


def _sampled_rows(layer: BitLinear) -> _Rows:
    weight = layer.weight.detach()
    own = local(weight)
    stride = max(1, len(own) // _SAMPLED_ROWS)
    first = 0
    if isinstance(weight, DTensor):
        # Sharded by rows; each process but the last ones has as many as the first.
        mesh = weight.device_mesh
        first = mesh.get_local_rank() * -(-len(weight) // mesh.size())
    return _Rows(layer, own[::stride], slice(first, first + len(own), stride))


def _sample(weight: Tensor) -> Tensor:
    return weight.view(-1)[:: max(1, weight.numel() // _SAMPLED_VALUES)]


def _as_words(weight: Tensor) -> Tensor:
    """View a weight as the widest whole numbers that fit: their sum changes with every bit."""
    assert weight.is_contiguous(), weight.shape
    flat = weight.view(-1)
    is_even = flat.numel() * flat.element_size() % 8 == 0 and flat.data_ptr() % 8 == 0
    narrow = {2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()]
    return flat.view(torch.int64 if is_even else narrow)


def _worst_of_all_processes(vector: Tensor) -> Tensor:
    if not torch.distributed.is_initialized():
        return vector
    # A maximum may drop NaN, but not infinity.
    vector = vector.nan_to_num(nan=torch.inf, posinf=torch.inf)
    torch.distributed.all_reduce(vector, torch.distributed.ReduceOp.MAX)
    return vector


def _send(step: int, vector: Tensor) -> Reading:
    if not vector.is_cuda:
        return Reading(step, vector, None)
    host = torch.empty(vector.shape, dtype=vector.dtype, pin_memory=True)
    host.copy_(vector, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    return Reading(step, host, copied)
