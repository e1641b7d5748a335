"""The shape of a model: one section of the configuration, and the counts that follow from it."""

from dataclasses import dataclass
from typing import Literal

MlpKind = Literal["swiglu", "relu2", "gated_relu2"]


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer. Widths and `context` count features and tokens.

    `qkv_bias` adds a bias to queries, keys and values, as Qwen 2 does; files from before it was
    known lack the key, and have none.

    Raises:
        ValueError: the shape is impossible; the text names the key and what to do.
    """

    name: str
    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    mlp: MlpKind
    mlp_width: int
    context: int
    rope_theta: float
    norm_eps: float
    qk_norm: bool
    sub_norm: bool
    tied_head: bool
    qkv_bias: bool = False

    def __post_init__(self) -> None:
        for key in (
            "vocab_size",
            "width",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "mlp_width",
            "context",
        ):
            if getattr(self, key) < 1:
                raise ValueError(f"model.{key}={getattr(self, key)} must be at least 1")
        if self.width % self.num_heads:
            raise ValueError(
                f"model.width={self.width} is not a multiple of num_heads={self.num_heads}; "
                "change one of them"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"model.num_heads={self.num_heads} is not a multiple of "
                f"num_kv_heads={self.num_kv_heads}; choose a divisor of num_heads"
            )
        if self.head_width % 2:
            raise ValueError(
                f"model.width / num_heads = {self.head_width} is odd; RoPE turns pairs of "
                "features, so choose an even head width"
            )
        if self.mlp not in ("swiglu", "relu2", "gated_relu2"):
            raise ValueError(
                f"model.mlp={self.mlp!r} is not known; choose swiglu, relu2 or gated_relu2"
            )
        if self.rope_theta <= 0 or self.norm_eps <= 0:
            raise ValueError(
                f"model.rope_theta={self.rope_theta} and norm_eps={self.norm_eps} must be positive"
            )

    @property
    def head_width(self) -> int:
        """Features of one attention head."""
        return self.width // self.num_heads

    @property
    def is_gated(self) -> bool:
        """True if the MLP multiplies an activated gate with a second projection."""
        return self.mlp != "relu2"
