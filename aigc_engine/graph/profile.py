"""How long each node of a plan took."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from aigc_engine.graph.plan import Call


class Profile:
    """Seconds of each node of one call; iterates over (node, seconds), prints as a table by kind.

    Args:
        times: nodes in order.
    """

    def __init__(self, times: Sequence[tuple[Call, float]]) -> None:
        self.times = list(times)

    def __iter__(self) -> Iterator[tuple[Call, float]]:
        return iter(self.times)

    @property
    def seconds(self) -> float:
        """Of all nodes together."""
        return sum(spent for _, spent in self.times)

    def __str__(self) -> str:
        kinds: dict[str, list[tuple[Call, float]]] = {}
        for call, spent in self.times:
            kind = call.what.split(" ")[0] + (", torch" if call.reason else "")
            kinds.setdefault(kind, []).append((call, spent))
        lines = [f"{len(self.times)} nodes, {self.seconds * 1e3:.3f} ms"]
        by_time = sorted(kinds.items(), key=lambda item: -sum(spent for _, spent in item[1]))
        for kind, found in by_time:
            spent = max(sum(spent for _, spent in found), 1e-9)
            flops, moved = sum(call.flops for call, _ in found), sum(call.moved for call, _ in found)
            share = 100 * spent / max(self.seconds, 1e-9)
            rates = f"{flops / spent / 1e9:.1f} GFLOP/s  {moved / spent / 1e9:.1f} GB/s"
            lines.append(f"{spent * 1e3:10.3f} ms {share:5.1f} %  {kind} x {len(found)}  {rates}")
        return "\n".join(lines)

    def save(self, path: str | Path) -> None:
        """Writes a trace that chrome://tracing and Perfetto read."""
        events, begin = [], 0.0
        for call, spent in self.times:
            more = {
                "shape": call.shape,
                "GFLOP/s": round(call.flops / max(spent, 1e-9) / 1e9, 2),
                "why": call.reason,
            }
            events.append(
                {
                    "name": call.what,
                    "cat": "torch" if call.reason else "native",
                    "ph": "X",
                    "pid": os.getpid(),
                    "tid": 0,
                    "ts": begin * 1e6,
                    "dur": spent * 1e6,
                    "args": {"node": call.name, **more},
                }
            )
            begin += spent
        written = Path(path).with_suffix(".part")
        written.write_text(json.dumps({"traceEvents": events}), encoding="utf-8")
        written.replace(path)
