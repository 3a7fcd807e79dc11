"""What every test file shares."""

from __future__ import annotations

import pytest

from aigc_engine import native, ops
from aigc_engine.dispatch import Op
from tests.interpreted import pytest_configure, pytest_pyfunc_call  # noqa: F401 (hooks)

ALL_OPS = [value for _, value in sorted(vars(ops).items()) if isinstance(value, Op)]


@pytest.fixture(params=[name for name, _, _ in native.isa_levels()])
def isa_level(request: pytest.FixtureRequest):
    """Runs the test once per ISA level that this machine has."""
    try:
        with native.force_isa(request.param):
            yield request.param
    except ValueError as error:
        pytest.skip(str(error))
