"""What every test file shares."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from aigc_engine import native, ops
from aigc_engine.dispatch import Op
from tests.interpreted import pytest_configure, pytest_pyfunc_call  # noqa: F401 (hooks)

# `make fuzz` names the other one.
SUITE = settings(
    max_examples=12, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
settings.register_profile("suite", SUITE)
settings.register_profile("fuzz", SUITE, max_examples=200, derandomize=False, print_blob=True)
settings.load_profile("suite")

ALL_OPS = [value for _, value in sorted(vars(ops).items()) if isinstance(value, Op)]


@pytest.fixture(params=[name for name, _, _ in native.isa_levels()])
def isa_level(request: pytest.FixtureRequest):
    """Runs the test once per ISA level that this machine has."""
    try:
        with native.force_isa(request.param):
            yield request.param
    except ValueError as error:
        pytest.skip(str(error))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from more threads, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def seeded() -> None:
    """The same random numbers for each test."""
    torch.manual_seed(0)
