"""`accelerate(offload=folder)`: plain weights in a mapped file, with the same results."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_engine import accelerate
from tests.test_accelerate import close, eager, randomised

pytestmark = [
    pytest.mark.usefixtures("seeded"),
    pytest.mark.skipif(sys.platform != "linux", reason="offloading is for Linux"),
]


class Tied(nn.Module):
    """Two megabytes that are used twice, a channels-last convolution, and a bias smaller than a page."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(512, 1024), nn.Linear(512, 1024)
        self.second.weight = self.first.weight
        self.conv = nn.Conv2d(32, 32, 3).to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.first(x)) + self.second(x)
        return self.conv(h.view(-1, 32, 4, 8))


def mapping_of(tensor: Tensor) -> tuple[str, int]:
    """The file of the mapping that a tensor lies in, "" if there's none, and its KiB in memory."""
    for mapping in re.split(r"\n(?=[0-9a-f]+-)", Path("/proc/self/smaps").read_text()):
        span, _, _, _, _, *name = mapping.splitlines()[0].split(maxsplit=5)
        begin, end = (int(bound, 16) for bound in span.split("-"))
        if begin <= tensor.data_ptr() < end:
            resident = re.search(r"^Rss: +(\d+)", mapping, re.MULTILINE)
            assert resident is not None
            return "".join(name), int(resident[1])
    raise AssertionError("a tensor's memory is mapped")


def test_weights_lie_in_an_unnamed_file_and_out_of_memory(tmp_path: Path) -> None:
    model = randomised(Tied())
    x = torch.randn(4, 512)
    wanted = accelerate(model)(x)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fast = accelerate(model, offload=tmp_path)
    assert fast(x).equal(wanted)
    assert not list(tmp_path.iterdir())
    name, resident = mapping_of(model.first.weight)
    assert name.startswith(str(tmp_path)) and resident < 512
    assert not mapping_of(model.conv.bias)[0].startswith(str(tmp_path))
    for name, tensor in model.state_dict().items():
        assert tensor.equal(before[name]) and tensor.stride() == before[name].stride(), name
    assert model.first.weight is model.second.weight


def test_changes_are_followed_and_kept(tmp_path: Path) -> None:
    model = randomised(Tied())
    x = torch.randn(4, 512)
    fast = accelerate(model, offload=tmp_path)
    fast(x)
    with torch.no_grad():
        model.first.weight.mul_(-0.5)
    close(fast(x), eager(model, x))
    model.load_state_dict(randomised(Tied()).state_dict())
    close(fast(x), eager(model, x))


def test_restore_brings_weights_back(tmp_path: Path) -> None:
    model = randomised(Tied())
    x = torch.randn(4, 512)
    wanted = eager(model, x)
    fast = accelerate(model, offload=tmp_path)
    fast(x)
    assert fast.restore() is model
    assert not mapping_of(model.first.weight)[0].startswith(str(tmp_path))
    assert eager(model, x).equal(wanted)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"accelerate: offload .*expected a folder; create it"):
        accelerate(Tied().eval(), offload=tmp_path / "missing")
