"""The pool of the native kernels: after fork, under several Python threads, and how many threads it takes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch

from aigc_engine import _native, native
from aigc_engine.dispatch import use_backend
from aigc_engine.ops import linear_update

TERMS = [torch.randn(4, 40_000, generator=torch.Generator().manual_seed(j)) for j in range(2)]
NOISE = {"noise_scale": torch.ones(4), "seeds": torch.arange(4), "streams": torch.arange(4)}
C = torch.tensor([[0.5, 2.0]]).repeat(4, 1)

PRELUDE = """
import os, signal, sys, torch
from aigc_engine import _native, native
from aigc_engine.ops import philox_normal
def work(seed=3):
    return philox_normal(torch.tensor([seed]), (200_000,))
os.register_at_fork(after_in_child=lambda: signal.alarm(60))  # a child that hangs ends
"""


def update() -> torch.Tensor:
    with use_backend("native"):
        return linear_update(TERMS, C, **NOISE)


def run(code: str, **env: str) -> str:
    """Runs code in a fresh process, which must end by itself."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | env,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_fork_after_use() -> None:
    """A child can't use its parent's OpenMP workers and makes its own; so does a child of it."""
    code = """
with native.use_threads(3):
    before = work()
    assert _native.pool_workers() == 0  # PyTorch's OpenMP workers did it
    child = os.fork()
    if child == 0:
        assert torch.equal(work(), before) and _native.pool_workers() == 2
        grandchild = os.fork()
        same = torch.equal(work(), before) and _native.pool_workers() == 2
        if grandchild == 0:
            os._exit(0 if same else 1)
        os._exit(0 if same and os.waitpid(grandchild, 0)[1] == 0 else 1)
    assert torch.equal(work(), before)
    print("child", os.waitpid(child, 0)[1], "workers", _native.pool_workers())
"""
    assert run(code) == "child 0 workers 0"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_fork_after_torch_alone_used_its_threads() -> None:
    code = """
torch.set_num_threads(2)
torch.randn(2_000_000).exp().sum()
child = os.fork()
if child == 0:
    with native.use_threads(2):
        work()
    os._exit(0)
print("child", os.waitpid(child, 0)[1])
"""
    assert run(code) == "child 0"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_fork_after_sampling() -> None:
    """PyTorch's own ops hang in a child whose parent used its threads, unless they're told to do with one."""
    code = """
from aigc_engine import load
torch.set_num_threads(2)
torch.randn(2_000_000).exp().sum()
sampler = load("digits-mlp-gan")
before = sampler.sample(8, seed=1)
child = os.fork()
if child == 0:
    torch.randn(2_000_000).exp().sum()
    os._exit(0 if torch.equal(sampler.sample(8, seed=1), before) else 1)
print("child", os.waitpid(child, 0)[1])
"""
    assert run(code) == "child 0"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_fork_while_another_thread_works() -> None:
    code = """
import threading
def loop():
    with native.use_threads(2):
        while not done.is_set():
            work(4)
done = threading.Event()
other = threading.Thread(target=loop)
other.start()
with native.use_threads(2):
    before = work()
    for _ in range(5):
        child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(work(), before) else 1)
        assert os.waitpid(child, 0)[1] == 0
done.set()
other.join()
print("done")
"""
    assert run(code) == "done"


def test_many_python_threads_at_once() -> None:
    with native.use_threads(1):
        expected = update()
    wrong = []

    def loop(threads: int) -> None:
        with native.use_threads(threads):
            wrong.extend(i for i in range(20) if not torch.equal(update(), expected))

    callers = [threading.Thread(target=loop, args=(count,)) for count in (1, 2, 3, 5)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_workers_are_made_when_wanted() -> None:
    """The pool that a forked child makes grows with the threads asked for, and never shrinks."""
    code = """
with native.use_threads(2):
    work()
child = os.fork()
if child:
    sys.exit(os.waitpid(child, 0)[1])
counts = [_native.pool_workers()]
for threads in (1, 2, 4, 3):
    with native.use_threads(threads):
        work()
    counts.append(_native.pool_workers())
philox_normal(torch.tensor([3]), (100,))  # too little for a second thread
print(counts)
"""
    assert run(code) == "[0, 0, 1, 3, 3]"


def test_threads_follow_torch_within_the_affinity_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(native, "_default_threads", None)
    monkeypatch.setattr(_native, "available_cpus", lambda: 4)
    try:
        for wanted, expected in ((1, 1), (3, 3), (4, 4), (9, 4)):
            torch.set_num_threads(wanted)
            assert native.threads() == expected
    finally:
        torch.set_num_threads(before)
    with native.use_threads(7):
        assert native.threads() == 7


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
def test_affinity_mask() -> None:
    code = """
torch.set_num_threads(8)
allowed = os.sched_getaffinity(0)
before = _native.available_cpus() == len(allowed), native.threads() == min(8, len(allowed))
os.sched_setaffinity(0, {min(allowed)})
print(before, _native.available_cpus(), native.threads())
"""
    assert run(code) == "(True, True) 1 1"


def test_environment_sets_the_default() -> None:
    assert run("print(native.threads())", AIGC_NUM_THREADS="3") == "3"


def test_signals_stay_with_the_main_thread() -> None:
    """A worker of our pool that took the signal would leave a sleeping main thread asleep."""
    code = """
with native.use_threads(3):
    work()
    child = os.fork()
    if child:
        sys.exit(os.waitpid(child, 0)[1])
    work()
masks = []
for task in os.listdir("/proc/self/task"):
    with open(f"/proc/self/task/{task}/status") as status:
        blocked = next(int(line.split()[1], 16) for line in status if line.startswith("SigBlk"))
    masks.append((int(task) == os.getpid(), bool(blocked >> (signal.SIGINT - 1) & 1)))
print(sorted(masks))
"""
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("this system has no /proc")
    masks = run(code)
    assert "(True, False)" in masks and masks.count("(False, True)") >= 2, masks
