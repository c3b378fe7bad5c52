#!/bin/bash
# All that only a GPU can check, in under nine minutes, in the project's root of a machine that has one: the tests of CUDA and
# the bench's GPU part. Without a network there, `bash ../shared/gpu/pack.sh` first fills .gpu/ here, which this unpacks there.
#   bash tests/benchmarks/gpu_check.sh [OUT]      # OUT: a folder for what is printed and measured; results/ by default
# Each part is ended when its time is over (TESTS_S=210 BENCH_S=310 seconds); what it had printed and measured is in OUT. With
# a lent machine's `run`: command "bash tests/benchmarks/gpu_check.sh $OUT", carry [".gpu"], timeout_s 600.
set -uo pipefail
out=${1:-results}
mkdir -p "$out"
[[ -f .gpu/unpack.sh ]] && source .gpu/unpack.sh
export PYTHONUNBUFFERED=1 PYTHONPATH=${PYTHONPATH:+$PYTHONPATH:}$PWD
nvidia-smi --query-gpu=name,driver_version,memory.used,memory.total --format=csv,noheader
workers=$(python3 -c 'import xdist; print("-n 6")' 2>/dev/null)
# by the file's name: to collect all tests takes half a minute, and one that lacks a package would keep all from running
timeout -k 10 "${TESTS_S:-210}" python3 -m pytest -q tests/test_gpu.py $workers --tb=short -rfE --durations=10 -p no:cacheprovider \
  -o faulthandler_timeout=90 2>&1 | tee "$out/gpu-tests.txt"
tests=${PIPESTATUS[0]}
timeout -k 10 "${BENCH_S:-310}" python3 tests/benchmarks/bench.py --only gpu --out "$out/bench-gpu.json" 2>&1 | tee "$out/gpu-bench.txt"
bench=${PIPESTATUS[0]}
echo "tests of CUDA ended with $tests, the bench's GPU part with $bench (124: its time was over)"
exit $((tests > bench ? tests : bench))
