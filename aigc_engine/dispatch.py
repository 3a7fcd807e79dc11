"""From an op's signature to the backend that serves the call.

`@op` turns a function, whose body is the reference in plain torch, into an `Op`: calling it validates the
arguments and runs the first backend of the registry that can serve them, the reference when none can.
`use_backend` names one for the current context, which then runs or raises; `explain` says why.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from aigc_engine import capability
from aigc_engine.registry import LINES, Line, lines_of
from aigc_engine.testing import Sample

REFERENCE = "reference"
AUTO = "auto"
_EVERY_OP = "*"
_capturing: ContextVar[bool] = ContextVar("aigc_engine_capturing", default=False)
_chosen: ContextVar[Mapping[str, str]] = ContextVar("aigc_engine_backend", default=MappingProxyType({}))


class UnsupportedError(RuntimeError):
    """No backend, or not the named one, serves this call; the message lists the reasons."""


@dataclass(frozen=True)
class Verdict:
    """What one backend says to one call: it serves it, or the reasons why it doesn't."""

    backend: str
    reasons: tuple[str, ...]

    @property
    def serves(self) -> bool:
        return not self.reasons

    def __str__(self) -> str:
        return f"{self.backend}: " + ("serves" if self.serves else "; ".join(self.reasons))


@dataclass(frozen=True)
class Explanation:
    """Who runs a call, and what every backend says to it, in priority order."""

    op: str
    runs: str
    verdicts: tuple[Verdict, ...]

    def __str__(self) -> str:
        return "\n".join([f"{self.op} runs on {self.runs}", *(f"  {verdict}" for verdict in self.verdicts)])


class Op:
    """An operation: signature, docstring, validation, reference and samples in one object.

    For benchmarks: `cost` gives (operations, bytes), `peer` is PyTorch's fastest way to the same (else the
    reference), and `arithmetic` is what its products are in (else the leading tensor's dtype).
    """

    def __init__(
        self,
        reference: Callable[..., Any],
        *,
        check: Callable[..., None],
        samples: Callable[[torch.dtype, str], Iterable[Sample]],
        facts: Callable[..., Mapping[str, Any]] | None = None,
        cost: Callable[..., tuple[float, float]] | None = None,
        peer: Callable[..., Any] | None = None,
        arithmetic: torch.dtype | None = None,
        dtypes: frozenset[torch.dtype],
        exact: bool = False,
        tiled: bool = False,
        slack: float = 1.0,
        because: str = "",
    ) -> None:
        if (slack != 1.0) != bool(because):
            raise ValueError(f"{reference.__name__}: slack and because go together")
        self.name = reference.__name__
        self.__name__ = reference.__name__
        self.__qualname__ = reference.__qualname__
        self.__module__ = reference.__module__
        self.__doc__ = reference.__doc__
        self.__wrapped__ = reference  # inspect.signature and help() show the reference's
        self.reference = reference
        self.check = check
        self.samples = samples
        self.facts = facts
        self.cost = cost
        self.peer = reference if peer is None else peer
        self.arithmetic = arithmetic
        self.dtypes = dtypes
        self.exact, self.slack, self.because = exact, slack, because
        self.tiled = tiled  # made of products whose order of sums is the ISA level's own
        self._lines: tuple[Line, ...] | None = None
        self._open: dict[tuple[str, torch.dtype], list[tuple[Line, Callable[..., Any]]]] = {}

    def __repr__(self) -> str:
        return f"<op {self.name}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        chosen = _chosen.get()
        named = self._chosen_from(chosen) if chosen else AUTO
        for shortcut in self._shortcuts.get(named, ()):
            result = shortcut(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if tracing():
            return self.peer(*args, **kwargs)  # in PyTorch's own terms; sizes may be symbols
        self.check(*args, **kwargs)
        if named != AUTO:
            return self._named(named, args, kwargs)(*args, **kwargs)
        lead = _lead(args, kwargs)
        for line, impl in self._candidates(lead):
            if not self._refusals(line, args, kwargs):
                return impl(*args, **kwargs)
        return self.reference(*args, **kwargs)

    def _chosen_from(self, chosen: Mapping[str, str]) -> str:
        return chosen.get(self.name) or chosen.get(_EVERY_OP, AUTO)

    @functools.cached_property
    def _shortcuts(self) -> Mapping[str, list[Callable[..., Any]]]:
        """The shortcuts of each backend that is here, and of all under "auto"."""
        found: dict[str, list[Callable[..., Any]]] = {AUTO: []}
        for line in self.lines:
            if line.shortcut and capability.missing(line.backend) is None:
                found[AUTO].append(_find(line.shortcut))
                found[line.backend] = [_find(line.shortcut)]
        return found

    @property
    def lines(self) -> tuple[Line, ...]:
        """The op's registry lines."""
        if self._lines is None:
            _keep_forks_usable()
            self._lines = lines_of(self.name)
        return self._lines

    def explain(self, *args: Any, **kwargs: Any) -> Explanation:
        """Says who runs this call in the current context and what each backend says to it."""
        self.check(*args, **kwargs)
        named = self._chosen_from(_chosen.get())
        verdicts = [Verdict(line.backend, self._reasons(line, args, kwargs, named)) for line in self.lines]
        verdicts.append(Verdict(REFERENCE, ()))
        if named == AUTO:
            runs = next(verdict.backend for verdict in verdicts if verdict.serves)
        else:
            runs = named if any(v.backend == named and v.serves for v in verdicts) else "nothing: it raises"
        return Explanation(self.name, runs, tuple(verdicts))

    def survey(self, device: str) -> tuple[Verdict, ...]:
        """What each backend says to calls on a type of device ("cpu", "cuda"), in priority order."""
        verdicts = [Verdict(line.backend, tuple(_device_reasons(line, device, AUTO))) for line in self.lines]
        return (*verdicts, Verdict(REFERENCE, ()))

    def implementation(self, backend: str) -> Callable[..., Any]:
        """The function behind a registry line, unvalidated (tests and benchmarks call it directly)."""
        if backend == REFERENCE:
            return self.reference
        for line in self.lines:
            if line.backend == backend:
                return _resolve(line)
        raise UnsupportedError(f"{self.name}: backend {backend!r}, expected one of {self.backends()}")

    def backends(self) -> list[str]:
        """Names of the backends that the registry holds for this op, the reference last."""
        return [line.backend for line in self.lines] + [REFERENCE]

    def _named(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Any]:
        if name == REFERENCE:
            return self.reference
        line = next((line for line in self.lines if line.backend == name), None)
        if line is None:
            raise UnsupportedError(
                f"{self.name}: no {name} backend, expected one of {self.backends()}; use_backend names it"
            )
        reasons = self._reasons(line, args, kwargs, name)
        if reasons:
            raise UnsupportedError(f"{self.name}: {name} can't serve this call: {'; '.join(reasons)}")
        return _resolve(line)

    def _candidates(self, lead: Tensor) -> list[tuple[Line, Callable[..., Any]]]:
        """Lines that only the call's own values can still refuse, by device type and dtype."""
        key = (lead.device.type, lead.dtype)
        found = self._open.get(key)
        if found is None:
            found = [(line, _resolve(line)) for line in self.lines if not _standing_reasons(line, lead, AUTO)]
            self._open[key] = found
        return found

    def _refusals(self, line: Line, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
        reasons = []
        if torch.is_grad_enabled() and any(t.requires_grad for t in _tensors(args, kwargs)):
            reasons.append("a gradient is needed (backends serve sampling; torch.no_grad() or the reference)")
        if line.limits:
            assert self.facts is not None, f"{self.name}: a line has limits but the op reports no facts"
            facts = self.facts(*args, **kwargs)
            for name, allowed in line.limits.items():
                if facts[name] not in allowed:
                    shown = allowed if not isinstance(allowed, frozenset) else sorted(allowed)
                    reasons.append(f"{name} {facts[name]}, serves {shown}")
        return reasons

    def _reasons(
        self, line: Line, args: tuple[Any, ...], kwargs: dict[str, Any], named: str
    ) -> tuple[str, ...]:
        lead = _lead(args, kwargs)
        return (*_standing_reasons(line, lead, named), *self._refusals(line, args, kwargs))


def op(**contract: Any) -> Callable[[Callable[..., Any]], Op]:
    """Declares an operation; the decorated body is its reference. See `Op` for the arguments."""

    def declare(reference: Callable[..., Any]) -> Op:
        return Op(reference, **contract)

    return declare


@contextlib.contextmanager
def use_backend(every: str | None = None, /, **per_op: str) -> Iterator[None]:
    """Names backends for the current context: `use_backend("native")`, `use_backend(attention="triton")`.

    A named backend runs or raises `UnsupportedError`; "auto" gives the choice back. Context-local: other
    threads and asyncio tasks keep theirs.

    Raises:
        ValueError: unknown op or backend name.
    """
    wanted = ({_EVERY_OP: every} if every is not None else {}) | per_op
    known = {line.backend for line in LINES} | {REFERENCE, AUTO}
    for name, backend in wanted.items():
        if backend not in known:
            raise ValueError(f"use_backend: backend {backend!r}, expected one of {sorted(known)}")
        if name != _EVERY_OP and name not in _op_names():
            raise ValueError(f"use_backend: op {name!r}, expected one of {sorted(_op_names())}")
    token = _chosen.set({**({} if every is not None else _chosen.get()), **wanted})
    try:
        yield
    finally:
        _chosen.reset(token)


def chosen_backend(operation: Op) -> str:
    """The backend that `use_backend` names for this op in the current context, "auto" if none."""
    return operation._chosen_from(_chosen.get())


@contextlib.contextmanager
def capturing() -> Iterator[None]:
    """In this context ops are traced: they run as PyTorch's own calls, on tensors that hold no values."""
    token = _capturing.set(True)
    try:
        yield
    finally:
        _capturing.reset(token)


def tracing() -> bool:
    """Whether this call is being captured, or traced by torch.compile.

    Not torch.compiler.is_compiling, which is true of all threads while one captures.
    """
    return torch.compiler.is_dynamo_compiling() or _capturing.get()


def chosen_backends() -> tuple[tuple[str, str], ...]:
    """What `use_backend` names in the current context, to compare and to hash."""
    return tuple(sorted(_chosen.get().items()))


def explain(operation: Op, *args: Any, **kwargs: Any) -> Explanation:
    """Says who runs `operation(*args, **kwargs)` here and why the others don't."""
    return operation.explain(*args, **kwargs)


@functools.cache
def _keep_forks_usable() -> None:
    """From the first use of an op on, PyTorch begins with one thread in a forked child.

    Its OpenMP workers stay behind in the parent, and the first op that wants them would hang.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=functools.partial(torch.set_num_threads, 1))


def _op_names() -> set[str]:
    from aigc_engine import ops

    return {name for name, value in vars(ops).items() if isinstance(value, Op)}


def _resolve(line: Line) -> Callable[..., Any]:
    return _find(line.impl)


def _find(path: str) -> Callable[..., Any]:
    module, function = path.split(":")
    return getattr(importlib.import_module(module), function)


def _standing_reasons(line: Line, lead: Tensor, named: str) -> list[str]:
    """Reasons that hold for every call on this machine with this device and dtype."""
    reasons = _device_reasons(line, lead.device.type, named)
    if lead.dtype not in line.dtypes:
        reasons.append(f"dtype {lead.dtype}, serves {sorted(map(str, line.dtypes))}")
    return reasons


def _device_reasons(line: Line, device: str, named: str) -> list[str]:
    """Reasons that hold for every call on this machine with this device."""
    reasons = []
    absent = capability.missing(line.backend)
    if absent:
        reasons.append(absent)
    interpreted = line.backend == named == "triton" and capability.triton_interpreted()
    if device not in line.devices and not interpreted:
        reasons.append(f"device {device}, serves {sorted(line.devices)}")
    return reasons


def _lead(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The tensor whose device and dtype decide: the first one."""
    first = args[0] if args else next(iter(kwargs.values()))
    if isinstance(first, (list, tuple)) and first:
        first = first[0]
    if isinstance(first, Tensor):
        return first
    return next(_tensors(args, kwargs))


def _tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from (item for item in value if isinstance(item, Tensor))
