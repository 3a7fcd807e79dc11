"""The cases under pytest-benchmark: `pytest bench --benchmark-only`, each a group of ours and theirs.

pytest-benchmark times one side after the other; records come from `python -m bench`, where they take turns.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.case import Case
from bench.groups import cases_of


@pytest.mark.parametrize("side", ["ours", "theirs"])
@pytest.mark.parametrize("case", cases_of("all"), ids=lambda case: f"{case.group}-{case.name}")
def test_bench(benchmark: Any, case: Case, side: str) -> None:
    benchmark.group = f"{case.group} {case.name}"
    with torch.no_grad():
        work = case.build()
        work.verify()
        benchmark(work.ours if side == "ours" else work.theirs)
