#!/usr/bin/env bash
# What a machine with a GPU or a TPU runs, in under ten minutes there: the benchmarks, then the tests of parity, training,
# resuming, saving, exporting, the module libraries and the metrics on the device. It installs nothing.
#
#   benchmarks/on_accelerator.sh [OUTPUT] [OPTION of `python -m benchmarks`...]
#
# OUTPUT is a folder for `figures.json`, `table.txt` and `tests.txt` (default: a new temporary folder). PYTHON is the
# interpreter (default: python). What takes longer than the ten minutes is ended. Without an accelerator everything runs
# on the CPU, the benchmarks with `--quick`, without these limits. The exit status is that of the tests: missed goals of
# the benchmarks do not fail.
set -euo pipefail
cd "$(dirname "$0")/.."
output=${1:-$(mktemp -d)}
shift || true
mkdir -p "$output"
output=$(cd "$output" && pwd)
python=${PYTHON:-python}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export XLA_PYTHON_CLIENT_PREALLOCATE=false # processes share the memory of the device

"$python" -c 'import jax; print("device:", ", ".join(f"{d.device_kind} ({d.platform})" for d in jax.devices()), "JAX", jax.__version__)' |
    tee "$output/device.txt"

if grep -q "(cpu)" "$output/device.txt"; then
    limits=(3600 3600)
    set -- --quick "$@"
else
    limits=(300 280)
fi

start=$SECONDS
timeout -s KILL "${limits[0]}" "$python" -m benchmarks --json "$output/figures.json" "$@" | tee "$output/table.txt" ||
    echo "the benchmarks did not end: see above"
echo "benchmarks: $((SECONDS - start)) s"

# `-n 0`: the tests share one device. Those that start other processes or several devices run on the CPU in CI.
start=$SECONDS
status=0
timeout -s KILL "${limits[1]}" "$python" -m pytest -n 0 -q -p no:cacheprovider \
    tests/trainer/test_trainer_parity.py \
    tests/trainer/test_trainer_fit.py \
    tests/trainer/test_resume.py \
    tests/trainer/test_trainer_saving.py \
    tests/trainer/test_trainer_export.py \
    tests/adapters/test_adapters_training.py \
    tests/metrics/test_metrics_values.py \
    tests/engine/test_engine_costs.py \
    tests/engine/test_engine_transfers.py 2>&1 | tee "$output/tests.txt" || status=$?
echo "tests: $((SECONDS - start)) s, exit status $status; everything is in $output"
exit "$status"
