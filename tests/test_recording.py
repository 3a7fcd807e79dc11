"""Kernel calls that are kept, and the memory they are laid out in."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time

import pytest
import torch

from aigc_engine import _native, ops
from aigc_engine.graph.arena import ALIGNMENT, Arena, Lifetimes, assign
from aigc_engine.native.memory import contiguous, empty, reshape, use_memory


class Noted:
    """Fresh memory that stays, and a list of the copies wanted."""

    def __init__(self) -> None:
        self.kept: list[torch.Tensor] = []
        self.copies: list[tuple[torch.Tensor, torch.Tensor]] = []

    def empty(self, shape, stride, dtype):
        out = torch.empty_strided(shape, stride, dtype=dtype)
        self.kept.append(out.fill_(torch.nan) if dtype.is_floating_point else out)
        return out

    def copy(self, source, target):
        self.copies.append((source, target))


KEPT: list[Noted] = []  # recordings hold addresses only


def recorded(call, *args, **kwargs):
    recording = _native.Recording()
    KEPT.append(Noted())
    recording.start()
    try:
        with use_memory(KEPT[-1]):
            out = call(*args, **kwargs)
    finally:
        recording.stop()
    return recording, out


def test_a_recorded_call_runs_when_it_is_told_to_and_reads_what_is_there_then() -> None:
    x, weight = torch.randn(5, 24), ops.pack_linear(torch.randn(16, 24))
    recording, out = recorded(ops.linear, x, weight, act="silu")
    assert len(recording) == 1 and out.isnan().all()
    recording.run()
    assert torch.equal(out, ops.linear(x, weight, act="silu"))
    x.mul_(0.5)
    recording.run()
    assert torch.equal(out, ops.linear(x, weight, act="silu"))
    assert len(recording.run_timed()) == 1


@pytest.mark.parametrize(
    ("call", "args", "kwargs"),
    [
        (ops.group_norm_silu, (torch.randn(2, 8, 5, 5), 4), {}),
        (ops.layer_norm, (torch.randn(3, 32),), {}),
        (ops.attention, tuple(torch.randn(2, 2, 9, 16) for _ in range(3)), {}),
        (ops.bias_act, (torch.randn(2, 8, 5), torch.randn(8)), {"act": "gelu"}),
        (ops.geglu, (torch.randn(3, 32),), {}),
        (ops.philox_normal, (torch.arange(3), (4,)), {}),
        (ops.conv2d, (torch.randn(2, 8, 5, 5).contiguous(memory_format=torch.channels_last),), {}),
        (ops.conv_transpose2d, (torch.randn(2, 8, 5, 5).contiguous(memory_format=torch.channels_last),), {}),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_every_kernel_can_be_recorded(call, args, kwargs) -> None:
    if call is ops.conv2d:
        args = (*args, ops.pack_conv2d(torch.randn(4, 8, 3, 3)))
    if call is ops.conv_transpose2d:
        args = (*args, ops.pack_conv_transpose2d(torch.randn(8, 4, 4, 4), stride=2))
        kwargs = {"stride": 2}
    recording, out = recorded(call, *args, **kwargs)
    recording.run()
    assert torch.equal(out, call(*args, **kwargs))


def test_what_is_read_at_once_cannot_be_recorded() -> None:
    with pytest.raises(ValueError, match="sample_token: can't be recorded"):
        recorded(ops.sample_token, torch.randn(2, 9), torch.rand(2))


def test_a_thread_records_into_one_recording_and_others_run() -> None:
    first, second = _native.Recording(), _native.Recording()
    x, results = torch.randn(4, 32), []
    first.start()
    try:
        with pytest.raises(RuntimeError, match="records already"):
            second.start()
        thread = threading.Thread(target=lambda: results.append(ops.layer_norm(x)))
        thread.start()
        thread.join()
    finally:
        first.stop()
    assert len(first) == 0 and torch.equal(results[0], ops.layer_norm(x))
    with pytest.raises(RuntimeError, match="doesn't record here"):
        first.stop()


def test_ctrl_c_ends_a_run() -> None:
    class One(Noted):
        """Every result in the same place."""

        def empty(self, shape, stride, dtype):
            return self.kept[0] if self.kept else super().empty(shape, stride, dtype)

    recording, x = _native.Recording(), torch.randn(64, 4096)
    recording.start()
    with use_memory(One()):
        for _ in range(20_000):
            out = ops.layer_norm(x)
    recording.stop()
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    before = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        recording.run()  # seconds long
    assert time.monotonic() - before < 2.0
    timer.join()
    assert torch.equal(out, ops.layer_norm(x))


def test_copies_are_handed_to_the_memory() -> None:
    memory, x = Noted(), torch.randn(4, 6).t()
    with use_memory(memory):
        assert contiguous(x.t()).data_ptr() == x.data_ptr()
        out = contiguous(x)
        flat = reshape(x, (24,))
        view = reshape(x.t(), (24,))
    assert [tuple(target.shape) for _, target in memory.copies] == [(6, 4), (6, 4)]
    assert out.is_contiguous() and flat.shape == (24,) and view.data_ptr() == x.data_ptr()
    assert empty((3,), torch.float32).shape == (3,)


def test_lifetimes_follow_references() -> None:
    lifetimes = Lifetimes()
    a = lifetimes.empty((10,), (1,), torch.float32)
    view = a.view(2, 5)[1]
    del a
    b = lifetimes.empty((4, 3), (3, 1), torch.bfloat16)
    assert lifetimes.deaths == [None, None]  # a view keeps its memory
    del view
    gc.collect()
    c = lifetimes.empty((100,), (1,), torch.float32)
    assert lifetimes.deaths[0] is not None and lifetimes.births[2] > lifetimes.deaths[0]
    offsets, peak = assign(lifetimes)
    assert offsets[0] == offsets[2] or offsets[0] < lifetimes.sizes[2]
    assert peak == lifetimes.sizes[1] + lifetimes.sizes[2]
    del b, c


def test_values_that_live_at_once_do_not_overlap() -> None:
    generator = torch.Generator().manual_seed(0)
    lifetimes = Lifetimes()
    alive: list[torch.Tensor] = []
    for step in range(300):
        size = int(torch.randint(1, 2000, (), generator=generator))
        alive.append(lifetimes.empty((size,), (1,), torch.float32))
        if step % 3:
            del alive[int(torch.randint(len(alive), (), generator=generator))]
    offsets, peak = assign(lifetimes)
    ends = [lifetimes.clock + 1 if death is None else death for death in lifetimes.deaths]
    for i in range(300):
        assert offsets[i] % ALIGNMENT == 0 and offsets[i] + lifetimes.sizes[i] <= peak
        for j in range(i):
            together = lifetimes.births[i] < ends[j] and lifetimes.births[j] < ends[i]
            apart = (
                offsets[i] + lifetimes.sizes[i] <= offsets[j] or offsets[j] + lifetimes.sizes[j] <= offsets[i]
            )
            assert apart or not together
    assert peak < sum(lifetimes.sizes) / 2
    arena = Arena(lifetimes)
    first = arena.empty((lifetimes.sizes[0] // 4,), (1,), torch.float32)
    assert first.data_ptr() % ALIGNMENT == 0
    with pytest.raises(AssertionError, match="other memory"):
        arena.empty((1 << 20,), (1,), torch.float32)
