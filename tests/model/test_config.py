"""An impossible shape is an error that names its key."""

from typing import Any

import pytest

from trilith.model import ModelConfig

VALID: dict[str, Any] = {
    "name": "toy",
    "vocab_size": 37,
    "width": 24,
    "num_layers": 2,
    "num_heads": 6,
    "num_kv_heads": 2,
    "mlp": "swiglu",
    "mlp_width": 40,
    "context": 32,
    "rope_theta": 10000.0,
    "norm_eps": 1e-5,
    "qk_norm": False,
    "sub_norm": False,
    "tied_head": True,
}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        *[
            ({key: 0}, rf"model\.{key}=0 must be at least 1")
            for key in (
                "vocab_size",
                "width",
                "num_layers",
                "num_heads",
                "num_kv_heads",
                "mlp_width",
                "context",
            )
        ],
        ({"width": 26}, r"model\.width=26 is not a multiple of num_heads=6"),
        ({"num_kv_heads": 4}, r"model\.num_heads=6 is not a multiple of num_kv_heads=4"),
        ({"num_kv_heads": 12}, r"num_heads=6 is not a multiple of num_kv_heads=12"),
        ({"width": 18}, r"model\.width / num_heads = 3 is odd"),
        ({"mlp": "gelu"}, r"model\.mlp='gelu' is not known"),
        ({"rope_theta": 0.0}, r"model\.rope_theta=0\.0"),
        ({"norm_eps": -1e-5}, r"norm_eps=-1e-05 must be positive"),
    ],
)
def test_an_impossible_shape_is_refused(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ModelConfig(**(VALID | change))


def test_what_follows_from_a_valid_shape() -> None:
    config = ModelConfig(**VALID)
    assert config.head_width == 4
    assert config.is_gated
    assert not ModelConfig(**(VALID | {"mlp": "relu2"})).is_gated
