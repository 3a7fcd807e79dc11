"""The registry and the dispatch: what they name exists, what exists is named, and a choice is kept."""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import aigc_engine
from aigc_engine import capability, native, ops
from aigc_engine.dispatch import REFERENCE, Op, UnsupportedError, explain, op, use_backend
from aigc_engine.registry import LINES, Line, Range
from aigc_engine.testing import Sample
from tests.conftest import ALL_OPS

ROOT = Path(__file__).resolve().parent.parent
NAMED = {operation.name: operation for operation in ALL_OPS}
TRITON_ON_CPU = "triton" if capability.triton_interpreted() else "nothing: it raises"
X, BIAS = torch.ones(2, 3, 4), torch.ones(3)


def modules_of(package: object) -> list[str]:
    return [name for _, name, _ in pkgutil.iter_modules(package.__path__) if not name.startswith("_")]  # type: ignore[attr-defined]


def parameters(function: object) -> list[tuple[str, object, object]]:
    found = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    return [(parameter.name, parameter.kind, parameter.default) for parameter in found]


def test_one_line_per_op_and_backend() -> None:
    keys = [(line.op, line.backend) for line in LINES]
    assert len(keys) == len(set(keys))
    assert {line.op for line in LINES} <= set(NAMED)
    assert {line.backend for line in LINES} <= set(capability.MISSING)


def test_kernel_files_and_lines_agree() -> None:
    from aigc_engine import kernels

    expected = {f"aigc_engine.kernels.{name}:{name}" for name in modules_of(kernels)}
    assert expected == {line.impl for line in LINES if line.backend == "triton"}


def test_native_adapters_and_lines_agree() -> None:
    adapters = set()
    for name in set(modules_of(native)) - {"memory", "packing"}:  # which serve the adapters
        module = importlib.import_module(f"aigc_engine.native.{name}")
        served = {f"{module.__name__}:{public}" for public in NAMED if hasattr(module, public)}
        assert served, f"{name}.py serves no op"
        adapters |= served
    assert adapters == {line.impl for line in LINES if line.backend in ("native", "cuda")}


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line.op}-{line.backend}")
def test_implementation_has_the_signature_of_its_op(line: Line) -> None:
    if line.backend == "triton":
        pytest.importorskip("triton")
    assert parameters(NAMED[line.op].implementation(line.backend)) == parameters(NAMED[line.op])
    if line.limits:
        assert NAMED[line.op].facts is not None


@pytest.mark.parametrize("operation", ALL_OPS, ids=lambda operation: operation.name)
def test_docstring_has_every_section(operation: Op) -> None:
    text = inspect.getdoc(operation.reference) or ""
    for section in ("Args", "Returns", "Raises", "References"):
        assert re.search(rf"^{section}:$", text, re.MULTILINE), f"no {section}"
    arguments = text[text.index("Args:") : text.index("Returns:")]
    for name in inspect.signature(operation).parameters:
        assert re.search(rf"\b{name}\b", arguments), f"{name} isn't described"


def test_every_op_is_exported() -> None:
    defined = {
        value.name
        for name in modules_of(ops)
        for value in vars(importlib.import_module(f"aigc_engine.ops.{name}")).values()
        if isinstance(value, Op)
    }
    assert defined == set(NAMED)
    assert {name for name in ops.__all__ if isinstance(getattr(ops, name), Op)} == defined


def test_package_exports_what_it_imports() -> None:
    for name in aigc_engine.__all__:
        assert hasattr(aigc_engine, name), name
    shown = {name for name, value in vars(aigc_engine).items() if not inspect.ismodule(value)}
    assert {name for name in shown if not name.startswith("_")} <= set(aigc_engine.__all__)


def test_unknown_names_raise() -> None:
    with pytest.raises(ValueError, match=r"use_backend: backend 'gpu', expected one of .*'native'"):
        use_backend("gpu").__enter__()
    with pytest.raises(ValueError, match="use_backend: backend 'gpu'"):
        use_backend(bias_act="gpu").__enter__()
    with pytest.raises(ValueError, match=r"use_backend: op 'bias', expected one of .*'bias_act'"):
        use_backend(bias="native").__enter__()
    with pytest.raises(UnsupportedError, match=r"bias_act: backend 'gpu', expected one of \['native'"):
        ops.bias_act.implementation("gpu")


def test_named_backend_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from aigc_engine.native import activation

    monkeypatch.setattr(activation, "bias_act", lambda *args, **kwargs: "native ran")
    with use_backend("native"):
        assert ops.bias_act(X, BIAS) == "native ran"
        with use_backend(bias_act=REFERENCE):
            assert torch.equal(ops.bias_act(X, BIAS), X + 1)
        with use_backend(REFERENCE), use_backend(bias_act="auto"):
            assert explain(ops.bias_act, X, BIAS).runs == "native"
        with use_backend(REFERENCE):
            assert torch.equal(ops.bias_act(X, BIAS), X + 1)
        assert ops.bias_act(X, BIAS) == "native ran"


def test_named_backend_raises_with_its_reasons() -> None:
    with use_backend("native"):
        with pytest.raises(
            UnsupportedError, match=r"native can't serve this call: dtype torch.float64, serves"
        ):
            ops.bias_act(X.double(), BIAS.double())
        with pytest.raises(UnsupportedError, match="a gradient is needed"):
            ops.bias_act(X.clone().requires_grad_(), BIAS)
        with torch.no_grad():
            ops.bias_act(X.clone().requires_grad_(), BIAS)
    without = next(operation for operation in ALL_OPS if "native" not in operation.backends())
    sample = next(iter(without.samples(torch.float32, "cpu")))
    with (
        use_backend("native"),
        pytest.raises(UnsupportedError, match=rf"{without.name}: no native backend, expected one of"),
    ):
        without(*sample.args, **sample.kwargs)


@pytest.mark.skipif(capability.triton_interpreted(), reason="Triton interprets in this process")
def test_triton_refuses_the_cpu() -> None:
    with (
        use_backend("triton"),
        pytest.raises(
            UnsupportedError, match=r"triton can't serve this call: .*device cpu, serves \['cuda'\]"
        ),
    ):
        ops.bias_act(X, BIAS)


def test_arguments_are_checked_before_a_backend_refuses() -> None:
    with use_backend("native"), pytest.raises(ValueError, match="bias_act: act 'swoosh', expected one of"):
        ops.bias_act(X.double(), act="swoosh")


def test_explain_lists_every_backend() -> None:
    explanation = explain(ops.bias_act, X, BIAS)
    assert [verdict.backend for verdict in explanation.verdicts] == ops.bias_act.backends()
    assert explanation.runs == "native"
    lines = str(explanation).splitlines()
    assert lines[0] == "bias_act runs on native"
    assert [line.split(":")[0].strip() for line in lines[1:]] == ops.bias_act.backends()
    with use_backend("triton"):
        assert explain(ops.bias_act, X, BIAS).runs == TRITON_ON_CPU
    wide = explain(ops.bias_act, X.double(), BIAS.double())
    assert wide.runs == REFERENCE
    assert "dtype torch.float64, serves" in wide.verdicts[0].reasons[0]


@pytest.mark.parametrize(("size", "serves"), [(15, False), (16, True), (128, True), (129, False)])
def test_limits_refuse_with_value_and_bound(size: int, serves: bool) -> None:
    def check(x: torch.Tensor) -> None:
        assert x.ndim

    def samples(dtype: torch.dtype, device: str) -> list[Sample]:
        return []

    @op(check=check, samples=samples, dtypes=frozenset(), facts=lambda x: {"D": x.shape[-1], "mask": "none"})
    def twice(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    limits = {"D": Range(16, 128), "mask": frozenset({"none", "key_padding"})}
    line = Line("twice", "native", "torch:square", frozenset({"cpu"}), frozenset({torch.float32}), limits)
    twice._lines = (line,)
    x = torch.full((size,), 3.0)
    assert torch.equal(twice(x), x * x if serves else 2 * x)
    if serves:
        assert twice.explain(x).runs == "native"
        return
    with use_backend("native"), pytest.raises(UnsupportedError, match=f"D {size}, serves 16 to 128$"):
        twice(x)


def chosen() -> str:
    return explain(ops.bias_act, X, BIAS).runs


def test_choice_stays_in_its_thread() -> None:
    seen: dict[str, str] = {}
    inside, done = threading.Event(), threading.Event()

    def other() -> None:
        with use_backend(REFERENCE):
            seen["other"] = chosen()
            inside.set()
            assert done.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(10)
    seen["main"] = chosen()
    done.set()
    thread.join()
    assert seen == {"other": REFERENCE, "main": "native"}
    with use_backend(REFERENCE):
        assert contextvars.copy_context().run(chosen) == REFERENCE
    assert chosen() == "native"


def test_choice_stays_in_its_task() -> None:
    async def choose(name: str) -> str:
        with use_backend(name):
            await asyncio.sleep(0)
            result = chosen()
            await asyncio.sleep(0)
            return result

    async def both() -> list[str]:
        return [*await asyncio.gather(choose(REFERENCE), choose("triton"), choose("native")), chosen()]

    assert asyncio.run(both()) == [REFERENCE, TRITON_ON_CPU, "native", "native"]


def test_choice_ends_with_an_error() -> None:
    with pytest.raises(ZeroDivisionError), use_backend(REFERENCE):
        _ = 1 / 0
    assert chosen() == "native"


@pytest.mark.parametrize("library", ["diffusers", "transformers"])
def test_kernels_folder_shadows_nothing(library: str) -> None:
    """From the repository root `kernels` is our folder, and Hugging Face's libraries probe for theirs."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} isn't installed")
    if any(distribution.name == "kernels" for distribution in importlib.metadata.distributions()):
        pytest.skip("Hugging Face's kernels is installed: then a checkout's root does hide it")
    probe = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        f"import {library}\n"
        f"from {library}.utils import import_utils\n"
        "assert not import_utils.is_kernels_available()\n"
        "import aigc_engine.kernels; print(aigc_engine.kernels.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("__init__.py")


def test_kernels_is_not_a_top_level_package(tmp_path: Path) -> None:
    probe = (
        "import importlib.util as u, aigc_engine\n"
        "spec = u.find_spec('kernels'); print(spec and spec.origin)\n"
        "print(u.find_spec('aigc_engine.kernels').origin)"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    top, ours = done.stdout.split()
    assert ours != top
