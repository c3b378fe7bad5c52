#!/bin/bash
# All that only a GPU can check, in a few minutes, in the project's root of a machine that has one: the tests of CUDA and the
# bench's GPU part. Without a network there, `bash ../shared/gpu/pack.sh` first fills .gpu/ here, which this unpacks there.
#   bash tests/benchmarks/gpu_check.sh [OUT]      # OUT: a folder for what is printed and measured; results/ by default
set -uo pipefail
out=${1:-results}
mkdir -p "$out"
[[ -f .gpu/unpack.sh ]] && source .gpu/unpack.sh
python3 -m pytest -q tests -m gpu --durations=10 -p no:cacheprovider 2>&1 | tee "$out/gpu-tests.txt"
tests=${PIPESTATUS[0]}
python3 tests/benchmarks/bench.py --only gpu --out "$out/bench-gpu.json" 2>&1 | tee "$out/gpu-bench.txt"
bench=${PIPESTATUS[0]}
echo "tests of CUDA ended with $tests, the bench's GPU part with $bench"
exit $((tests > bench ? tests : bench))
