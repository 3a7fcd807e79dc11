#!/bin/sh
# Builds for aarch64 and runs tests there under emulation. On x86_64 Debian 12, as root (debootstrap asks for it), after
#   apt-get install debootstrap g++-aarch64-linux-gnu qemu-user-static
# $1: folder for an arm64 Debian, PyTorch and the build (1.5 GB), used again the next time; then pytest's arguments.
set -eu
root=$(realpath -m "$1")
shift
export PYTHONPATH="$PWD"

if [ ! -e "$root/.complete" ]; then
  rm -rf "$root"
  # Only unpacked: configuring would need a kernel that starts arm64 programs.
  debootstrap --arch=arm64 --foreign --variant=minbase --include=python3-dev,libgomp1,libstdc++6 bookworm "$root"
  for package in "$root"/var/cache/apt/archives/*.deb; do dpkg -x "$package" "$root"; done
  arm_pip() {
    pip install --quiet --target "$root/site" --python-version 3.11 --only-binary=:all: \
      --platform manylinux_2_28_aarch64 --platform manylinux2014_aarch64 "$@"
  }
  arm_pip --no-deps torch==2.10.0 # the last that comes without CUDA
  arm_pip filelock fsspec jinja2 networkx sympy typing_extensions numpy pillow rich safetensors tqdm typer \
    expecttest hypothesis pytest pytest-timeout
  # A core without SVE: PyTorch makes SVE instructions at run time that Debian 12's emulator does not know.
  cat > "$root/python" << END
#!/bin/sh
QEMU_CPU=neoverse-n1 QEMU_LD_PREFIX=$root PYTHONPATH=\$PYTHONPATH:$root/site exec qemu-aarch64-static $root/usr/bin/python3.11 "\$@"
END
  chmod +x "$root/python"
  # Tests start Python anew by its name.
  echo "import sys; sys.executable = '$root/python'" > "$root/site/sitecustomize.py"
  touch "$root/.complete"
fi

cmake -G Ninja -S . -B "$root/build" -DCMAKE_BUILD_TYPE=Release -DAIGC_CUDA=off \
  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
  -DCMAKE_CXX_FLAGS="-idirafter $root/usr/include" -DPython_INCLUDE_DIR="$root/usr/include/python3.11" \
  -Dpybind11_DIR="$(python -m pybind11 --cmakedir)" \
  -DAIGC_OUTPUT_DIR="$PWD/aigc_engine" -DAIGC_OUTPUT_NAME=_native.cpython-311-aarch64-linux-gnu.so
cmake --build "$root/build"
"$root/python" -m pytest -p no:cacheprovider --timeout=3600 "$@"
