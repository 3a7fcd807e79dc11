"""A module's plain weights in a file, mapped: calls read packed ones, so these needn't stay in memory."""

from __future__ import annotations

import mmap
import os
import sys
import tempfile

import torch
from torch import Tensor, nn

from aigc_engine.dispatch import UnsupportedError

PAGE = mmap.PAGESIZE


class Offloaded:
    """Weights of a page or more, moved to an unnamed file, which is gone with its last tensor.

    They stay the module's, and what is written to them is kept; reading one that isn't in memory reads the
    file.

    Args:
        module: whose parameters get other memory.
        folder: where the file is, on a disk.

    Raises:
        OSError: no room, or no right to write there.
        UnsupportedError: not on Linux, whose mappings give memory back when told to.
    """

    def __init__(self, module: nn.Module, folder: str | os.PathLike[str]) -> None:
        if sys.platform != "linux":
            raise UnsupportedError(f"accelerate: offload on {sys.platform}, expected linux; leave it out")
        moved = [parameter for parameter in module.parameters() if _can_move(parameter)]
        places, size = [], 0
        for parameter in moved:
            places.append(size)
            size += (parameter.nbytes + PAGE - 1) // PAGE * PAGE
        self._memory: mmap.mmap | None = None
        self._spans: dict[int, tuple[int, int]] = {}  # by address: where in the file, and how long
        if not moved:
            return
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(
                file.fileno(), 0, size
            )  # a full disk says so now and not in the midst of a write
            self._memory = mmap.mmap(file.fileno(), size)
        bytes_of = torch.frombuffer(self._memory, dtype=torch.uint8)
        with torch.no_grad():
            for parameter, place in zip(moved, places, strict=True):
                plain = bytes_of[place : place + parameter.nbytes].view(parameter.dtype)
                plain = plain.as_strided(parameter.shape, parameter.stride())
                parameter.data = plain.copy_(parameter)
                self._spans[parameter.data_ptr()] = place, parameter.nbytes
                self.release(parameter)

    def release(self, weight: Tensor) -> None:
        """Drops what memory holds of a weight, if it's one of these; the file has it all."""
        if self._memory is None or weight.data_ptr() not in self._spans:
            return
        place, size = self._spans[weight.data_ptr()]
        self._memory.madvise(mmap.MADV_DONTNEED, place, size)

    def restore(self, module: nn.Module) -> None:
        """Brings the weights back to memory, those that are still here."""
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.data_ptr() in self._spans:
                    parameter.data = parameter.data.clone()


def _can_move(parameter: nn.Parameter) -> bool:
    """Whether it's a plain tensor on the CPU, without gaps, and larger than a page."""
    plain = parameter.layout is torch.strided and parameter.device.type == "cpu"
    if not plain or parameter.nbytes < PAGE or parameter.is_inference():
        return False
    dense = torch.empty_like(parameter, device="meta").stride() == parameter.stride()
    return type(parameter.data) is Tensor and dense
