"""The CUDA launchers without a GPU: nvcc compiles them, unfused, and their functors give the CPU's bits."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from aigc_engine import _native
from aigc_engine.ops import linear_update, philox_normal, philox_uniform

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
TARGETS = (80, 90, 100)
NVCC, GXX = shutil.which("nvcc"), shutil.which("g++")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc isn't on the PATH")


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module", params=SOURCES, ids=lambda source: source.stem)
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder with the compiler's intermediate files of one source, and what it said."""
    folder = tmp_path_factory.mktemp(request.param.stem)
    targets = [f"-gencode=arch=compute_{target},code=sm_{target}" for target in TARGETS]
    flags = ["-std=c++17", "-O3", "--fmad=false", f"-I{ROOT / 'csrc'}", "-Xptxas=-v", "--threads=0"]
    keep = ["--keep", f"--keep-dir={folder}"]
    said = run(str(NVCC), *flags, *targets, *keep, "-c", str(request.param), "-o", str(folder / "object.o"))
    return folder, said


@needs_nvcc
def test_compiles_without_spills(compiled: tuple[Path, str]) -> None:
    folder, said = compiled
    assert {int(sm) for sm in re.findall(r"for 'sm_(\d+)'", said)} == set(TARGETS)
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    assert spills and set(spills) == {("0", "0")}
    assert "warning" not in said.lower()


@needs_nvcc
def test_no_fused_multiply_add(compiled: tuple[Path, str]) -> None:
    """The functors must round as the CPU loop does; only what the machine code makes of sqrt.rn may fuse."""
    listings = list(compiled[0].glob("*.ptx"))
    assert len(listings) == len(TARGETS)
    for listing in listings:
        text = listing.read_text()
        assert "mul.f32" in text or "mul.rn.f32" in text
        assert not re.search(r"\bfma\.|\bmad\.\w*\.?f32|\.ftz|\.approx", text), listing.name


HOST = r"""
#define AIGC_ISA host
#include "math/linear_update.h"
#include "math/philox.h"
#include <cstdio>
#include <cstdlib>
using namespace aigc::host;
struct Term {
  float x, z;
  float operator()(int j) const { return j == 0 ? x : z; }
};
int main(int, char** argv) {
  const PhiloxKeys keys(strtoull(argv[1], nullptr, 10));
  const uint64_t stream = strtoull(argv[2], nullptr, 10), blocks = strtoull(argv[3], nullptr, 10);
  const float coefficients[2] = {-1.75f, 0.3f};
  for (uint64_t block = 0; block < blocks; ++block) {
    uint32_t w[4] = {uint32_t(block), uint32_t(block >> 32), uint32_t(stream), uint32_t(stream >> 32)};
    philox<ScalarLanes>(keys, w);
    float z[4];
    box_muller<ScalarLanes>(w[0], w[1], z[0], z[1]);
    box_muller<ScalarLanes>(w[2], w[3], z[2], z[3]);
    for (float normal : z) {
      const float updated = linear_update_element<2, float>(coefficients, Term{normal * 3.0f, normal});
      std::printf("%a %a %a\n", normal, updated, uniform<ScalarLanes>(w[0]));
    }
  }
}
"""


@pytest.mark.skipif(GXX is None, reason="g++ isn't on the PATH")
def test_functors_of_one_lane_have_the_bits_of_sixteen(tmp_path: Path) -> None:
    """What a CUDA thread runs, run on the host."""
    source, program = tmp_path / "host.cpp", tmp_path / "host"
    source.write_text(HOST)
    flags = ["-std=gnu++17", "-O2", "-ffp-contract=off", f"-I{ROOT / 'csrc'}"]
    run(str(GXX), *flags, str(source), "-o", str(program))
    seed, stream, blocks = -3, 2**33 + 5, 250
    rows = run(str(program), str(seed % 2**64), str(stream), str(blocks)).split("\n")[: 4 * blocks]
    normal, updated, uniform = torch.tensor(
        [[float.fromhex(number) for number in row.split()] for row in rows], dtype=torch.float32
    ).T
    expected = philox_normal(torch.tensor([seed]), (4 * blocks,), stream=stream)
    assert torch.equal(normal, expected[0])
    update = linear_update(
        [expected * 3.0],
        torch.tensor([[-1.75]]),
        noise_scale=torch.tensor([0.3]),
        seeds=torch.tensor([seed]),
        streams=torch.tensor([stream]),
    )
    assert torch.equal(updated, update[0])
    assert uniform[0].item() == philox_uniform(torch.tensor([seed]), stream=stream).item()


def test_a_module_with_launchers_loads_without_a_driver() -> None:
    """The CUDA runtime is linked statically and looks for the driver when first used."""
    if not _native.with_cuda:
        pytest.skip("this build has no CUDA launchers (nvcc wasn't found when it was built)")
    if shutil.which("ldd") is None:
        pytest.skip("ldd isn't on the PATH")
    assert "cuda" not in run("ldd", _native.__file__).replace(str(ROOT), "").lower()
    assert callable(_native.linear_update_cuda)
