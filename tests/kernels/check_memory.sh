#!/usr/bin/env bash
# Run the kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer (Linux, GCC).
#
# Usage: tests/kernels/check_memory.sh [pytest arguments]     in the environment that has wiring
set -euo pipefail
cd "$(dirname "$0")/../.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r CMakeLists.txt pyproject.toml wiring benchmarks tests "$work"
find "$work" -name '*.so' -delete
cmake -S "$work" -B "$work/build" -DPython_EXECUTABLE="$(command -v python)" -DWIRING_SANITIZE=ON >/dev/null
cmake --build "$work/build" --parallel 2 >/dev/null

cd "$work"
# Python itself is not built with the sanitizers, so they are loaded before it; what it and
# PyTorch leave to the end of the process is not a leak of ours.
export ASAN_OPTIONS=detect_leaks=0:alloc_dealloc_mismatch=0:halt_on_error=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" \
  PYTHONPATH=$work python -m pytest -p no:cacheprovider --capture=sys tests/kernels "$@"
