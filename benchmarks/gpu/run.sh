#!/bin/sh
# Measure mcframe on this machine's GPU, in at most six minutes, without a network: benchmarks/gpu/run.sh [FOLDER]
# Results: FOLDER/results.json, for `python benchmarks/gpu/report.py FOLDER/results.json`. `--help` has the options.
set -eu
cd "$(dirname "$0")/../.."
PYTHONUNBUFFERED=1 exec "${PYTHON:-python3}" -m benchmarks.gpu.kit "$@"
