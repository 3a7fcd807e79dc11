"""Tests marked `interpreted` run in a process of their own, where Triton interprets its kernels on the CPU.

Triton reads TRITON_INTERPRET when a kernel is defined, so a process that has imported one can't change its
mind. A few subprocesses of pytest share the marked tests of a session, and each reports its own outcome here.
With the variable already set they simply run.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import pytest

from aigc_engine import capability

LIMIT_S = 840
MOST_PROCESSES = 4
Outcomes = dict[str, tuple[str, str]]
_outcomes = pytest.StashKey[Outcomes]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "interpreted: runs under Triton's interpreter, in a subprocess")
    if capability.triton_interpreted():
        from tests import interpreter_bfloat16

        interpreter_bfloat16.repair()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if pyfuncitem.get_closest_marker("interpreted") is None or capability.triton_interpreted():
        return None
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton isn't installed")
    outcomes = pyfuncitem.session.stash.get(_outcomes, None)
    if outcomes is None:
        outcomes = pyfuncitem.session.stash[_outcomes] = _run_interpreted(pyfuncitem.session)
    kind, text = outcomes[_key(pyfuncitem.nodeid)]
    if kind == "skipped":
        pytest.skip(text)
    if kind != "passed":
        pytest.fail(text, pytrace=False)
    return True


def _key(nodeid: str) -> str:
    path, *rest = nodeid.split("::")
    return ".".join([*Path(path).with_suffix("").parts, *rest[:-1]]) + "::" + rest[-1]


def _run_interpreted(session: pytest.Session) -> Outcomes:
    """Runs the session's marked tests in a few subprocesses; their outcomes by `module::name`."""
    marked = [item.nodeid for item in session.items if item.get_closest_marker("interpreted")]
    shares = min(MOST_PROCESSES, len(capability.cpus()), len(marked))
    outcomes: Outcomes = {}
    with ThreadPoolExecutor(shares) as pool:
        for share in pool.map(
            functools.partial(_run_share, session), (marked[i::shares] for i in range(shares))
        ):
            outcomes |= share
    return outcomes


def _run_share(session: pytest.Session, tests: list[str]) -> Outcomes:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        quiet = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pytest", *quiet, *tests],
                cwd=session.config.rootpath,
                env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                timeout=LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return dict.fromkeys(map(_key, tests), ("error", f"not done after {LIMIT_S} s"))
        ended = done.stdout[-4000:] + done.stderr[-4000:]
        outcomes = dict.fromkeys(map(_key, tests), ("error", f"the interpreting process ended:\n{ended}"))
        return outcomes | (_read(report) if report.exists() else {})


def _read(report: Path) -> Outcomes:
    """Outcomes in a JUnit report."""
    outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        kind, text = "passed", ""
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                kind, text = child.tag, child.text or child.get("message", "")
        outcomes[f"{case.get('classname')}::{case.get('name')}"] = (kind, text)
    return outcomes
