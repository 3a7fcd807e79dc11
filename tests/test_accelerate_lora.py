"""`accelerate` while adapters, processors, hooks and options of the module are changed."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aigc_engine import accelerate
from tests import diffusers_toys as toys
from tests.diffusers_toys import error

pytestmark = toys.MARKS


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_lora() -> None:
    pytest.importorskip("diffusers", reason="diffusers isn't installed")
    peft = pytest.importorskip("peft", reason="peft isn't installed")
    model, seen = toys.sd3(), list[Tensor]()
    fast = accelerate(model)
    args = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 32), torch.randn(2, 64), torch.full((2,), 3)

    def follows(*, like: int | None = None, **more: Any) -> None:
        """As the module, and as the result before with this index, or as none of them."""
        with torch.no_grad():
            wanted, got = (net(*args, return_dict=False, **more)[0] for net in (model, fast))
        assert error(got, wanted) < 1e-5
        assert [i for i, value in enumerate(seen) if error(got, value) < 1e-5] == (
            [] if like is None else [like]
        )
        seen.append(got)

    def lora(*names: str) -> peft.LoraConfig:
        return peft.LoraConfig(r=2, lora_alpha=4, target_modules=list(names), init_lora_weights=False)

    model.add_adapter(lora("to_q", "to_v", "pos_embed.proj"), adapter_name="style")
    model.add_adapter(lora("to_k"), adapter_name="subject")
    model.eval().set_adapters(["style", "subject"], [0.5, 0.7])
    follows()
    model.set_adapters(["style"], [0.3])
    follows(joint_attention_kwargs={"scale": 0.5})
    model.fuse_lora(lora_scale=0.8, adapter_names=["style"])
    follows()
    graphs = list(fast._graphs)
    model.load_state_dict({name: 0.9 * value for name, value in model.state_dict().items()})
    follows()
    assert fast._graphs == graphs  # weights alone are written anew where they are
    model.unload_lora()  # what was fused stays
    follows(like=3)


class Scaled(nn.Module):
    """A layer with an option of each kind that code may keep."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.parts = nn.ModuleList([nn.Linear(4, 4)])
        self.scale, self.scales, self.enabled = 1.0, {"a": [1.0]}, True
        self.processor = torch.tanh

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x) * self.scale + self.scales["a"][0] if self.enabled else self.layer(x)
        for part in self.parts:
            x = self.processor(part(x))
        return x * getattr(self, "late", 1.0)


def test_structure_and_options_are_followed() -> None:
    def double(module: nn.Module, args: tuple, result: Tensor) -> Tensor:
        return result * 2

    changes = {
        "number": lambda m: setattr(m, "scale", 2.0),
        "number in a dict": lambda m: m.scales["a"].append(m.scales["a"].pop() + 1.0),
        "new attribute": lambda m: setattr(m, "late", 0.5),
        "flag": lambda m: setattr(m, "enabled", False),
        "function": lambda m: setattr(m, "processor", torch.sin),
        "more layers": lambda m: m.parts.append(nn.Linear(4, 4).eval()),
        "another layer": lambda m: setattr(m, "layer", nn.Sequential(m.layer, nn.ReLU()).eval()),
        "hook": lambda m: m.parts[0].register_forward_hook(double),
        "fewer layers": lambda m: m.parts.__delitem__(0),
        "attribute gone": lambda m: delattr(m, "late"),
    }
    model, x = Scaled().eval(), torch.randn(3, 4)
    fast = accelerate(model)
    before = fast(x)
    for name, change in changes.items():
        change(model)
        with torch.no_grad():
            wanted = model(x)
        assert error(wanted, before) > 1e-3, name
        before = fast(x)
        assert error(before, wanted) < 1e-6, name
    graphs = list(fast._graphs)
    fast(x)
    assert fast._graphs == graphs and len(graphs) == 1


def test_options_that_a_call_changes_for_itself() -> None:
    def scaled(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(forward)
        def wrapper(self: Scaled, *args: Any, **kwargs: Any) -> Tensor:
            factor = (kwargs.get("options") or {}).get("scale", 1.0)  # as diffusers scales LoRA
            self.scales["a"][0] *= factor
            try:
                return forward(self, *args, **kwargs)
            finally:
                self.scales["a"][0] /= factor

        return wrapper

    class Wrapped(Scaled):
        @scaled
        def forward(self, x: Tensor, options: dict[str, float] | None = None) -> Tensor:
            return super().forward(x)

    model, x = Wrapped().eval(), torch.randn(2, 4)
    plain, fast = copy.deepcopy(model), accelerate(model)
    for options in (None, {"scale": 0.5}, {"scale": 4.0}, {"scale": 3.0}, None):
        assert error(fast(x, options=options), plain(x, options=options)) < 1e-6
        assert model.scales == plain.scales


def test_modules_that_note_their_calls_are_captured_once() -> None:
    class Counting(Scaled):
        def forward(self, x: Tensor) -> Tensor:
            self.calls = getattr(self, "calls", 0) + 1
            return super().forward(x)

    fast = accelerate(Counting().eval())
    for rows in (2, 1, 3):
        fast(torch.randn(rows, 4))
        fast._module.latest = torch.randn(rows)  # a cache is no option
    assert len(fast._graphs) == 1 and fast.calls <= 2


def test_networks_accelerated_twice_are_captured_from_themselves() -> None:
    model, x = Scaled().eval(), torch.randn(2, 4)
    plain = copy.deepcopy(model)

    class Pipe:
        def __init__(self) -> None:
            self.components = {"model": model}

        def __call__(self, x: Tensor) -> Tensor:
            return model(x)

    first, second, low = accelerate(Pipe()), accelerate(Pipe()), accelerate(model, dtype=torch.bfloat16)
    with torch.no_grad():
        wanted = plain(x)
    assert error(first(x), wanted) < 1e-6 and error(second(x), wanted) < 1e-6
    assert 1e-6 < error(low(x), wanted) < 0.1
    assert error(model(x), wanted) < 1e-6
    second.restore()
    assert "forward" not in vars(model)
