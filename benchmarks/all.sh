#!/bin/sh
# Every figure of docs/performance.md, in the order it stands there: one JSON object a line.
# Needs an otherwise idle machine and about twenty minutes.
set -eu
cd "$(dirname "$0")/.."
python=.venv/bin/python
"$python" benchmarks/local_add.py --json
"$python" benchmarks/noise_stream.py --json
"$python" benchmarks/protected.py --json
"$python" -m benchmarks.dht --lookups 40 --json
