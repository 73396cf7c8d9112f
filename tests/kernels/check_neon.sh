#!/usr/bin/env bash
# Run the kernels' tests as an ARM machine would, under emulation: cross-compile the NEON and the
# portable kernels, and let an emulated Python with PyTorch for aarch64 test them.
#
# Debian only. Needs: apt-get install g++-aarch64-linux-gnu qemu-user; dpkg --add-architecture arm64
# Usage: tests/kernels/check_neon.sh [pytest arguments]     (about 100 times slower than native)
set -euo pipefail
cd "$(dirname "$0")/../.."

version=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
work=${WIRING_NEON_DIR:-${TMPDIR:-/tmp}/wiring-neon}
site=$work/site root=$work/root
mkdir -p "$site" "$root" "$work/debs" "$work/wheels"

if [ ! -e "$root/usr/bin/python$version" ]; then
  (cd "$work/debs" && apt-get download "python$version-minimal:arm64" "libpython$version-minimal:arm64" \
    "libpython$version-stdlib:arm64" "libpython$version-dev:arm64" libssl3:arm64 libffi8:arm64 \
    libexpat1:arm64 zlib1g:arm64 libbz2-1.0:arm64 liblzma5:arm64 libsqlite3-0:arm64 libc6:arm64 \
    libgcc-s1:arm64 libstdc++6:arm64 libgomp1:arm64 libuuid1:arm64 libcrypt1:arm64)
  for deb in "$work"/debs/*.deb; do dpkg -x "$deb" "$root"; done
fi
if [ ! -d "$site/torch" ]; then
  # 2.10 is the last PyTorch whose wheel for ARM comes without CUDA.
  python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version "$version" \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
    --platform manylinux2014_aarch64 --dest "$work/wheels" \
    torch==2.10.0 numpy typing_extensions sympy mpmath networkx jinja2 markupsafe filelock fsspec \
    pydantic pydantic_core annotated_types typing_inspection hypothesis sortedcontainers pytest \
    pluggy iniconfig packaging pygments safetensors pytest-timeout nanobind setuptools
  for wheel in "$work"/wheels/*.whl; do python3 -m zipfile -e "$wheel" "$site"; done
fi

compile=(aarch64-linux-gnu-g++ -std=c++17 -O2 -fPIC -ffp-contract=off -Wall -Wextra -fopenmp)
headers=(-I wiring/kernels -I "$site/nanobind/include" -I "$site/nanobind/ext/robin_map/include"
  -isystem "$root/usr/include/python$version" -isystem "$root/usr/include")
objects=$work/objects
rm -rf "$work/checkout" && mkdir -p "$work/checkout" "$objects"
cp -r wiring tests pyproject.toml "$work/checkout"
find "$work/checkout" -name '*.so' -delete
[ -e "$objects/nanobind.o" ] || "${compile[@]}" -fno-strict-aliasing -w "${headers[@]}" -c \
  -o "$objects/nanobind.o" "$site/nanobind/src/nb_combined.cpp"
for bind in wiring/kernels/*/bind.cpp; do
  folder=$(dirname "$bind")
  parts=()
  for set in portable neon; do
    parts+=("$objects/$(basename "$folder")-$set.o")
    "${compile[@]}" "${headers[@]}" -DWIRING_ISA=$set -DWIRING_ISA_$set -c -o "${parts[-1]}" "$folder/cpu.cpp"
  done
  "${compile[@]}" -fno-strict-aliasing "${headers[@]}" -shared \
    -o "$work/checkout/$folder/_cpu.so" "$bind" "${parts[@]}" "$objects/nanobind.o"
done

cd "$work/checkout"
PYTHONPATH=$site:$work/checkout exec qemu-aarch64 -L "$root" "$root/usr/bin/python$version" -m pytest \
  -p no:cacheprovider -o timeout=0 tests/kernels "$@"
