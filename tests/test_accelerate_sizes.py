"""`accelerate` where a module's code looks at sizes: a graph serves all that take its way, and no others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from aigc_engine import accelerate

LEFT_TO_TORCH = "ignore:accelerate. .* run through torch:RuntimeWarning"
pytestmark = [pytest.mark.filterwarnings(LEFT_TO_TORCH), pytest.mark.usefixtures("seeded")]


class Code(nn.Module):
    """A module whose forward is this function."""

    def __init__(self, code: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.code = code

    def forward(self, x: Tensor) -> Tensor:
        return self.code(x)


def same(fast: Callable[[Tensor], Tensor], code: Callable[[Tensor], Tensor], x: Tensor) -> None:
    got, wanted = fast(x), code(x)
    assert got.shape == wanted.shape and torch.equal(got, wanted)


# What a module's code asks of sizes, and how many ways it takes for the sizes below.
ASKING: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "one_row": (lambda x: x * 2 if x.shape[0] == 1 else x - 1, 2),
    "several_rows": (lambda x: x * 2 if x.shape[0] > 1 else x - 1, 2),
    "half_a_row": (lambda x: x * 2 if x.shape[0] / 2 < 1 else x - 1, 2),
    "falsy": (lambda x: x * 2 if x.shape[0] - 1 else x - 1, 2),
    "among": (lambda x: x * 2 if x.shape[0] in (1, 7) else x - 1, 2),
    "one_pixel_high": (lambda x: x * 2 if x.shape[2] == 1 else x - 1, 2),
    "elements": (lambda x: x * 2 if x[0, 0].numel() == 1 else x - 1, 2),
    "largest": (lambda x: x * max(x.shape[0], 2), 1),
    "nothing": (lambda x: x * 2, 1),
}
SIZES = [(2, 3, 4, 4), (1, 3, 4, 4), (3, 3, 4, 5), (2, 3, 1, 5), (1, 3, 1, 5), (2, 3, 1, 1)]


@pytest.mark.parametrize("name", ASKING)
@pytest.mark.parametrize("order", [1, -1])
def test_code_that_asks_for_a_size_of_one(name: str, order: int) -> None:
    code, ways = ASKING[name]
    fast = accelerate(Code(code).eval())
    for sizes in SIZES[::order]:
        same(fast, code, torch.randn(sizes))
    # Where a first call's sizes are 1 the graph is of those, and then one more for others.
    assert order == -1 or len(fast._graphs) == ways


def test_lengths_and_ranks_that_follow_from_one_row() -> None:
    def length(x: Tensor) -> Tensor:
        return x * 2 if len(x) > 1 else x - 1

    def squeezed(x: Tensor) -> Tensor:
        return x.squeeze(0).flatten(0, 1) * 2

    def repeated(x: Tensor) -> Tensor:
        return torch.cat([x] * x.shape[0])

    for code in (length, squeezed, repeated):
        for order in (1, -1):
            fast = accelerate(Code(code).eval())
            for batch in (2, 1, 3)[::order]:
                same(fast, code, torch.randn(batch, 3, 4))


def test_one_row_takes_the_graph_of_several_without_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(), nn.AvgPool2d(2)).eval()
    fast = accelerate(net)
    fast(torch.randn(2, 3, 8, 8))
    monkeypatch.setattr(torch.export, "export", None)
    with torch.no_grad():
        for sizes in ((1, 3, 8, 8), (1, 3, 2, 12), (4, 3, 8, 8)):
            x = torch.randn(sizes)
            torch.testing.assert_close(fast(x), net(x), rtol=1e-4, atol=1e-5)


def test_ways_are_kept_with_a_saved_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = ASKING["one_row"][0]
    fast = accelerate(Code(code).eval())
    fast(torch.randn(2, 3))
    fast.save(tmp_path / "two.safetensors")
    fast(torch.randn(1, 3))
    fast.save(tmp_path / "both.safetensors")
    fast = accelerate(Code(code).eval(), saved=tmp_path / "two.safetensors")
    for batch in (1, 3):
        same(fast, code, torch.randn(batch, 3))
    monkeypatch.setattr(torch.export, "export", None)
    fast = accelerate(Code(code).eval(), saved=tmp_path / "both.safetensors")
    for batch in (1, 3):
        same(fast, code, torch.randn(batch, 3))


def test_captures_in_threads_note_what_is_their_own() -> None:
    ask = torch.SymBool.__bool__
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            fast = accelerate(Code(ASKING[name][0]).eval())
            for batch in (2, 1, 3):
                same(fast, ASKING[name][0], torch.randn(batch, 3, 4, 4))
            assert len(fast._graphs) == ASKING[name][1]
        except BaseException as error:
            failures.append(error)
            raise

    for names in (("one_row", "nothing"), ("falsy", "several_rows")):
        threads = [threading.Thread(target=work, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures and torch.SymBool.__bool__ is ask


def test_sizes_for_which_the_code_takes_another_way() -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.shape[1] > 4 else x - 1

    fast, model = accelerate(Both().eval()), Both()
    for width in (3, 8, 4, 5):
        x = torch.randn(2, width)
        assert torch.equal(fast(x), model(x))


def test_sizes_of_one_beside_multiples_of_them() -> None:
    class Frames(nn.Module):
        def forward(self, video: Tensor, text: Tensor) -> Tensor:
            return video.transpose(1, 2).reshape(text.shape) * text

    fast, model = accelerate(Frames().eval()), Frames()
    for batch, frames in ((1, 3), (1, 5), (2, 3), (3, 2), (1, 2)):
        args = torch.randn(batch, 4, frames), torch.randn(batch * frames, 4)
        assert torch.equal(fast(*args), model(*args))
    assert len(fast._graphs) <= 3
