"""Every value of the quant section has an effect or is an error."""

from typing import Any

import pytest

from trilith.quant import QuantConfig

VALID = {
    "grid": "ternary",
    "scale_rule": "absmean",
    "granularity": "tensor",
    "group_size": None,
    "activation_bits": 8,
}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"grid": "prime9"}, r"quant\.grid='prime9'"),
        ({"scale_rule": "max"}, r"quant\.scale_rule='max'"),
        ({"granularity": "column"}, r"quant\.granularity='column'"),
        ({"activation_bits": 4}, r"quant\.activation_bits=4"),
        ({"group_size": 32}, r"quant\.group_size=32 with quant\.granularity=tensor"),
        ({"granularity": "group"}, r"quant\.group_size=None with quant\.granularity=group"),
        ({"granularity": "group", "group_size": 0}, r"quant\.group_size=0 must be positive"),
        ({"grid": "prime7"}, r"quant\.scale_rule=absmean does not fit grid=prime7"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_its_key(change: dict[str, Any], text: str) -> None:
    QuantConfig(**VALID)
    with pytest.raises(ValueError, match=text):
        QuantConfig(**(VALID | change))
