"""Every instruction set of the native kernels; those this processor lacks are skipped."""

import pytest

from trilith.kernels import Isa, available_isas
from trilith.kernels.choice import ISA_NUMBERS


@pytest.fixture(params=list(ISA_NUMBERS))
def isa(request: pytest.FixtureRequest) -> Isa:
    if request.param not in available_isas():
        pytest.skip(f"no compiler, or this processor has no {request.param}")
    return Isa(request.param, ISA_NUMBERS[request.param])
