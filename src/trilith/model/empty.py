"""Models and modules on the meta device: shapes without memory, and without drawing weights.

torch loads its compiler (70 MB, a second) to draw a tensor that has no values.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from trilith.model.attention import LinearFactory
from trilith.model.config import ModelConfig
from trilith.model.transformer import Transformer

_DRAWS = (Tensor.normal_, Tensor.uniform_)


def empty_model(config: ModelConfig, linear: LinearFactory) -> Transformer:
    """Return a model on the meta device."""
    with without_memory():
        return Transformer(config, linear)


@contextmanager
def without_memory() -> Iterator[None]:
    """Make new modules on the meta device, where drawing does nothing."""
    with torch.device("meta"), _NothingToDraw():
        yield


class _NothingToDraw(TorchFunctionMode):
    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        # The functions of nn.init come as a whole, with their tensor by name or by place.
        kwargs = kwargs or {}
        if function in _DRAWS or getattr(function, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)
