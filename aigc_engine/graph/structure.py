"""What a capture takes from its module beside tensors: which submodules there are, and their options.

Adapters and attention processors are put in while a module is in use, and a scale is a Python number that the
graph holds. None of that is in a tensor, so it's compared before each call: about 0.3 us for a module.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from aigc_engine.dispatch import UnsupportedError

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.Size)
CONTAINERS = (list, tuple, set, frozenset)
OF_TORCH = "torch.nn."  # whose layers' options nobody changes
NO_OPTIONS = frozenset(vars(nn.Module())) | {"forward"}


class Structure:
    """A module's submodules and options as they are now."""

    def __init__(self, module: nn.Module) -> None:
        self._children: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = []
        self._parts: list[_Part] = []
        for part in module.modules():
            hooks = (part._forward_hooks, part._forward_pre_hooks)
            self._children += [(found, dict(found)) for found in (part._modules, *hooks)]
            if not type(part).__module__.startswith(OF_TORCH):
                self._parts.append(_Part(part))

    def holds(self) -> bool:
        """Whether the module is still as it was."""
        if any(now != before for now, before in self._children):
            return False
        return all(part.holds() for part in self._parts)

    @contextmanager
    def restored(self, strict: bool = False) -> Iterator[None]:
        """Puts options back that calls in the block have changed.

        Raises:
            UnsupportedError: strict, and a number had become a tensor.
        """
        leaked = False
        try:
            yield
        finally:
            for part in self._parts:
                leaked |= part.restore()
        if leaked and strict:
            raise UnsupportedError(
                "accelerate: the module keeps a number that it's called with, expected none"
            )


class _Part:
    """The options of one submodule: attributes that can be compared."""

    def __init__(self, module: nn.Module) -> None:
        self._attributes = vars(module)
        self._options = _options(self._attributes)
        self._read = operator.itemgetter("training", *self._options)
        self._values = self._read({"training": module.training, **self._options})
        self._count = len(self._attributes)

    def holds(self) -> bool:
        if len(self._attributes) != self._count:  # caches come and go, and so does a plan as `forward`
            if _options(self._attributes) != self._options:
                return False
            self._count = len(self._attributes)
        try:
            return bool(self._read(self._attributes) == self._values)
        except KeyError:
            return False

    def restore(self) -> bool:
        leaked = False
        for name, value in self._options.items():
            now = self._attributes.get(name)
            if _comparable(now) and now == value:
                continue
            pairs = zip(pytree.tree_leaves(now), pytree.tree_leaves(value), strict=False)
            leaked |= any(isinstance(leaf, Tensor) and type(was) in (int, float) for leaf, was in pairs)
            if isinstance(now, dict) and isinstance(value, dict):
                now.clear()
                now.update(_copied(value))
            else:
                self._attributes[name] = _copied(value)
        return leaked


def _options(attributes: Mapping[str, Any]) -> dict[str, Any]:
    found = attributes.items()
    return {name: _copied(value) for name, value in found if name not in NO_OPTIONS and _comparable(value)}


def _comparable(value: Any) -> bool:
    """Whether equality says yes or no, which it doesn't of tensors."""
    if isinstance(value, CONTAINERS):
        return all(map(_comparable, value))
    if isinstance(value, dict):
        return all(map(_comparable, value.values()))
    equality: Any = type(value).__eq__
    return isinstance(value, PLAIN) or callable(value) or equality is object.__eq__


def _copied(value: Any) -> Any:
    """The value with containers of its own."""
    if isinstance(value, dict):
        return {name: _copied(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_copied(item) for item in value]
    return set(value) if isinstance(value, set) else value
