"""`accelerate`: the module's results, for every shape, while its weights change, and from several threads."""

from __future__ import annotations

import gc
import json
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import aigc_engine
from aigc_engine import UnsupportedError, accelerate, native, ops, use_backend
from aigc_engine.dispatch import tracing
from aigc_engine.models import architecture

LEFT_TO_TORCH = "ignore:accelerate. .* run through torch:RuntimeWarning"
pytestmark = [pytest.mark.filterwarnings(LEFT_TO_TORCH), pytest.mark.usefixtures("seeded")]


def randomised(model: nn.Module) -> nn.Module:
    """Weights that leave no layer without effect."""
    for parameter in model.parameters():
        scale = 0.1 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
        parameter.data = torch.randn(parameter.shape) * scale
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.data = torch.rand(buffer.shape) + 0.5
    return model.eval()


def eager(model: nn.Module, *args, **kwargs):
    with torch.no_grad(), use_backend("reference"):
        return model(*args, **kwargs)


def close(got: Tensor, wanted: Tensor, bound: float = 1e-5) -> None:
    assert got.shape == wanted.shape and got.dtype == wanted.dtype
    for layout in (
        (torch.contiguous_format, torch.channels_last) if got.ndim == 4 else (torch.contiguous_format,)
    ):
        assert got.is_contiguous(memory_format=layout) == wanted.is_contiguous(memory_format=layout)
    error = (got.double() - wanted.double()).norm() / wanted.double().norm()
    assert error < bound, f"{error:.2e}"


class Block(nn.Module):
    """A residual block between two convolutions, with a time."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.norm = nn.GroupNorm(4, channels)
        self.embed = nn.Linear(4, channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.out = nn.Conv2d(channels, 3, 1)

    def forward(self, x: Tensor, t: Tensor | float = 0.5, *, scale: float = 1.0) -> dict[str, Tensor]:
        if not isinstance(t, Tensor):
            t = torch.tensor(t)
        phases = torch.stack([torch.cos(t * k) for k in range(4)], -1).reshape(-1, 4)
        e = self.embed(phases.to(self.embed.weight.dtype))
        h = self.first(x)
        h = h + self.second(F.silu(self.norm(h))) + e.expand(x.shape[0], -1)[:, :, None, None]
        return {"sample": self.out(h) * scale, "features": h}


ZOO = {
    "UNet": lambda B: (torch.randn(B, 1, 28, 28), torch.arange(B) * 10.0, torch.arange(B)),
    "DCGANGenerator": lambda B: (torch.randn(B, 64), torch.arange(B)),
    "MLPGenerator": lambda B: (torch.randn(B, 64),),
    "VAE": lambda B: (torch.randn(B, 1, 28, 28),),
}


@pytest.mark.parametrize("name", ZOO)
def test_networks_of_the_zoo(name: str) -> None:
    model = randomised(architecture(name)())
    fast = accelerate(model)
    for batch in (2, 1, 3):
        args = ZOO[name](batch)
        close(fast(*args), eager(model, *args))
    assert len(fast._graphs) == 1
    both = fast(*args)
    for row in range(3):
        assert torch.equal(fast(*(arg[row : row + 1] for arg in args)), both[row : row + 1])


def test_results_are_what_the_module_returns() -> None:
    model = Block().eval()
    fast = accelerate(model)
    for x, t in ((torch.randn(2, 3, 8, 8), 3), (torch.randn(1, 3, 8, 12), 500), (torch.randn(5, 3, 9, 9), 7)):
        got, wanted = fast(x, t, scale=2.0), eager(model, x, t, scale=2.0)
        assert type(got) is dict and list(got) == list(wanted)
        for key in wanted:
            close(got[key], wanted[key])
    assert len(fast._graphs) == 1
    shapes = len(fast._shapes)
    fast(x, 8, scale=3.0)
    assert len(fast._shapes) == shapes  # numbers make no new plan
    fast(x, torch.tensor(8), scale=3.0)
    assert len(fast._shapes) == shapes
    assert torch.equal(fast(x, t)["sample"], fast(x=x, t=t, scale=1.0)["sample"])
    before = got["features"].clone()
    fast(x * 2, t)
    assert torch.equal(got["features"], before)  # results are the caller's own


def test_changed_weights_are_noticed() -> None:
    model = Block().eval()
    fast, x = accelerate(model), torch.randn(2, 3, 8, 8)
    close(fast(x)["sample"], eager(model, x)["sample"])
    graph, plans = fast._graphs[0], list(fast._shapes.values())
    with torch.no_grad():
        model.second.weight.mul_(1.5)
        model.second.bias.add_(0.3)
        model.embed.weight.add_(0.1)
    close(fast(x)["sample"], eager(model, x)["sample"])
    model.load_state_dict({name: value * 0.7 for name, value in model.state_dict().items()})
    close(fast(x)["sample"], eager(model, x)["sample"])
    assert fast._graphs == [graph] and list(fast._shapes.values()) == plans
    model.out.weight = nn.Parameter(torch.randn_like(model.out.weight))
    close(fast(x)["sample"], eager(model, x)["sample"])
    model.norm.weight.data = torch.rand(16)
    close(fast(x)["sample"], eager(model, x)["sample"])


def test_changed_weights_of_inference_mode_are_noticed() -> None:
    with torch.inference_mode():
        model, x = Block().eval(), torch.randn(2, 3, 8, 8)
        fast = accelerate(model)
        first = fast(x)["sample"]
        close(first, eager(model, x)["sample"])
        model.second.weight.mul_(-1.0)
        model.norm.bias.add_(0.3)
        close(fast(x)["sample"], eager(model, x)["sample"])
        model.second.weight.mul_(-1.0)
        model.norm.bias.sub_(0.3)
    close(fast(x)["sample"], first)


def test_threads_give_the_serial_results() -> None:
    model = Block().eval()
    fast = accelerate(model)
    inputs = [torch.randn(1 + i % 2, 3, 8, 8) for i in range(8)]
    serial = [fast(x)["sample"] for x in inputs]
    failures = []

    def work(index: int) -> None:
        for _ in range(20):
            if not torch.equal(fast(inputs[index])["sample"], serial[index]):
                failures.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_attributes_and_restore(tmp_path: Path) -> None:
    model = Block().eval()
    model.config = {"channels": 16}
    fast = accelerate(model)
    assert fast.config is model.config and list(fast.state_dict()) == list(model.state_dict())
    with pytest.raises(RuntimeError, match="nothing was called yet"):
        fast.explain()
    with pytest.raises(AttributeError):
        _ = fast.nothing
    fast(torch.randn(1, 3, 8, 8))
    assert "conv2d + residual" in fast.explain() and "arena" in fast.explain()
    profile = fast.profile(torch.randn(1, 3, 8, 8))
    assert profile.seconds > 0 and any(call.flops for call, _ in profile) and "GFLOP/s" in str(profile)
    profile.save(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]
    assert {event["cat"] for event in events} == {"native", "torch"} and len(events) == len(profile.times)
    assert fast.restore() is model


def test_what_is_left_to_torch_is_said() -> None:
    model, x = nn.Sequential(nn.Linear(8, 8), nn.Softplus()).eval(), torch.randn(2, 8)
    with pytest.warns(RuntimeWarning, match="1 of 2 nodes run through torch.*softplus"):
        accelerate(model)(x)
    with pytest.raises(UnsupportedError, match="left to torch: softplus .*strict=False"):
        accelerate(model, strict=True)(x)
    assert torch.is_tensor(accelerate(model[0], strict=True)(x))


def test_bfloat16_and_float64() -> None:
    model = Block()
    x, t = torch.randn(2, 3, 8, 8), torch.tensor(3)
    truth = eager(model.double().eval(), x.double(), t)["sample"]
    close(accelerate(model)(x.double(), t)["sample"], truth, 1e-12)
    model = model.bfloat16()
    own = (eager(model, x.bfloat16(), t)["sample"].double() - truth).norm()
    got = accelerate(model)(x.bfloat16(), t)["sample"]
    assert got.dtype == torch.bfloat16 and (got.double() - truth).norm() <= 1.5 * own


def test_many_shapes_keep_few_plans() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 3, 3)).eval()
    fast = accelerate(model)
    for size in range(4, 30):
        x = torch.randn(1 + size % 3, 3, size, 33 - size)
        close(fast(x), eager(model, x))
    assert len(fast._graphs) == 1 and len(fast._shapes) <= 16


def test_fractions_that_the_code_rounds() -> None:
    class Rounds(nn.Module):
        def forward(self, x: Tensor, t: Tensor | float) -> Tensor:
            if not torch.is_tensor(t):
                t = torch.tensor([t], dtype=torch.int64)
            return x * t

    fast, model, x = accelerate(Rounds().eval()), Rounds(), torch.randn(2, 3)
    for t in (3, 3.0, 3.5, 4, 7.25, 9.0, torch.tensor(3.5)):
        assert torch.equal(fast(x, t), model(x, t))
    block = accelerate(Block().eval())
    for t in (0.5, 3, 0.25, 7.125):
        block(torch.randn(2, 3, 8, 8), t, scale=t)
    assert len(block._graphs) == 2  # a number of either kind


def test_bad_input() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    class Picks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[x > 0]

    class Refused(Exception):
        pass

    class Refuses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise Refused("not today")

    with pytest.raises(TypeError, match="obj function, expected a torch.nn.Module or a diffusers pipeline"):
        accelerate(lambda x: x)
    with pytest.raises(ValueError, match="training mode, expected eval mode; call eval"):
        accelerate(Block())
    with pytest.raises(ValueError, match="precision 'low', expected one of"):
        accelerate(Block().eval(), precision="low")
    with pytest.raises(UnsupportedError, match="Branches can't be captured: .*data-dependent"):
        accelerate(Branches().eval())(torch.randn(3))
    with pytest.raises(UnsupportedError, match="Picks can't be captured: .*shape that depends on values"):
        accelerate(Picks().eval())(torch.randn(3))
    with pytest.raises(Refused, match="not today"):  # the module's own fault is no limit of capturing
        accelerate(Refuses().eval())(torch.randn(3))
    fast = accelerate(Block().eval())
    with pytest.raises(UnsupportedError, match=r"argument .*\[0\] on meta, expected cpu"):
        fast(torch.randn(1, 3, 8, 8, device="meta"))
    with pytest.raises(UnsupportedError, match="requires a gradient"):
        fast(torch.randn(1, 3, 8, 8, requires_grad=True))
    with pytest.raises(TypeError, match="missing a required argument: 'x'"):
        fast()
    fast._module.train()
    with pytest.raises(ValueError, match="training mode"):
        fast(torch.randn(1, 3, 8, 8))
    assert aigc_engine.accelerate is accelerate


def test_inference_mode_and_all_kinds_of_arguments() -> None:
    class Many(nn.Module):
        def forward(self, x: Tensor, mask: Tensor, index: Tensor, more: dict, *, flag: bool = True) -> tuple:
            h = x[index] * more["scale"][0] if flag else x
            return torch.where(mask, h, -h), (index + 1, more["scale"][1].real), None, "name"

    model, x = Many().eval(), torch.randn(3, 4)
    fast = accelerate(model)
    args = (
        x,
        x > 0,
        torch.tensor([2, 0, 1]),
        {"scale": [torch.tensor(2.0), torch.randn(5, dtype=torch.complex64)]},
    )
    for flag in (True, False, True):
        with torch.inference_mode(flag):
            got = fast(*args, flag=flag)
        wanted = model(*args, flag=flag)
        assert torch.equal(got[0], wanted[0]) and torch.equal(got[1][0], wanted[1][0])
        assert torch.equal(got[1][1], wanted[1][1]) and got[2:] == (None, "name")


def test_stale_memory_has_no_effect() -> None:
    model = randomised(architecture("VAE")())
    fast, x = accelerate(model), torch.randn(2, 1, 28, 28)
    first = fast(x)
    (shape,) = fast._shapes.values()
    shape.free[0].kept[0].fill_(255)  # NaN
    assert torch.equal(fast(x), first)


def test_memory_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Softplus(), nn.LayerNorm(64)).eval()
    fast = accelerate(model)
    for rows in range(1, 50):
        fast(torch.randn(rows, 64))
    before = len(gc.get_objects())
    for rows in range(1, 50):
        for _ in range(5):
            fast(torch.randn(rows, 64))
    assert len(gc.get_objects()) < before + 2000
    assert len(fast._shapes) == 16 and all(len(shape.free) == 1 for shape in fast._shapes.values())


def test_named_backends_and_levels_have_plans_of_their_own() -> None:
    model, x = Block().eval(), torch.randn(2, 3, 8, 8)
    fast = accelerate(model)
    first = fast(x)["sample"]
    with use_backend("reference"):
        close(fast(x)["sample"], eager(model, x)["sample"], 1e-6)
        assert any("conv2d" in line and ", torch: " in line for line in fast.explain().splitlines())
    with native.force_isa("portable"), native.use_threads(3):
        close(fast(x)["sample"], first)
    assert torch.equal(fast(x)["sample"], first) and len(fast._shapes) == 3
    with (
        use_backend(conv2d="triton"),
        pytest.raises(UnsupportedError, match="use_backend names who can't serve it: conv2d"),
    ):
        fast(x)


def test_a_capture_changes_nothing_for_other_threads() -> None:
    weight, x = ops.pack_linear(torch.randn(16, 64)), torch.randn(3, 64)
    wanted, found = ops.linear(x, weight), []

    class Asking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            thread = threading.Thread(target=lambda: found.append((ops.linear(rows, weight), tracing())))
            thread.start()
            thread.join()
            assert tracing()
            return x + 1

    rows = x
    accelerate(Asking().eval())(x)
    assert not tracing() and torch.equal(found[0][0], wanted) and not found[0][1]
