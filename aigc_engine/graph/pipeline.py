"""A diffusers pipeline whose networks run as native plans, in place."""

from __future__ import annotations

from typing import Any

from torch import nn

from aigc_engine.graph.accelerated import Accelerated

HALVES = ("encoder", "decoder")  # of an autoencoder, which pipelines don't call as a whole


def networks(pipe: Any) -> dict[str, nn.Module]:
    """The modules that a pipeline calls, by name; an autoencoder's two halves instead of itself."""
    found: dict[str, nn.Module] = {}
    for name, component in pipe.components.items():
        if not isinstance(component, nn.Module):
            continue
        halves = {half: getattr(component, half, None) for half in HALVES}
        if hasattr(component, "decode") and all(isinstance(half, nn.Module) for half in halves.values()):
            found |= {f"{name}.{half}": module for half, module in halves.items() if module is not None}
        else:
            found[name] = component
    return found


class AcceleratedPipeline:
    """What `accelerate` returns for a pipeline: called like it, with its attributes."""

    def __init__(self, pipe: Any, found: dict[str, Accelerated]) -> None:
        self._pipe = pipe
        self._networks = found
        for network in found.values():
            network.install()

    def __getattr__(self, name: str) -> Any:
        if name == "_pipe":
            raise AttributeError(name)
        return getattr(self._pipe, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._pipe(*args, **kwargs)

    def __repr__(self) -> str:
        return f"accelerate({self._pipe!r})"

    def restore(self) -> Any:
        """The pipeline as it was; plans and packed weights are dropped."""
        for network in self._networks.values():
            network.restore()
        return self._pipe

    def explain(self) -> str:
        """For each network that was called, the plan of its latest call."""
        parts = []
        for name, network in self._networks.items():
            told = network.explain() if network.called else "not called yet"
            parts.append(f"{name}: {told}")
        return "\n".join(parts)
