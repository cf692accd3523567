#!/bin/sh
# Every figure of docs/performance.md, in the order it stands there: one JSON object a line, but
# for growth, which prints tables.  Needs an otherwise idle machine and about an hour.
set -eu
cd "$(dirname "$0")/.."
python=.venv/bin/python
"$python" benchmarks/local_add.py --json
"$python" benchmarks/local_add.py --files 3000 --json
"$python" benchmarks/transport.py bulk --json
"$python" benchmarks/transport.py bulk --streams 8 --json
"$python" benchmarks/transport.py requests --json
"$python" benchmarks/transport.py connect --json
"$python" -m benchmarks.slow_reader --json
"$python" -m benchmarks.slow_senders --seconds 11 --json
"$python" -m benchmarks.dht --json
"$python" -m benchmarks.dht_sim run
"$python" -m benchmarks.dht_sim sessions --nodes 150
"$python" -m benchmarks.dht_sim burst --nodes 1000
"$python" -m benchmarks.protected --json
"$python" -m benchmarks.sick_nodes --json
"$python" -m benchmarks.fetch --json
"$python" -m benchmarks.bandwidth --json
"$python" -m benchmarks.daemon --json
for part in nodes files blocks roots; do
    "$python" -m benchmarks.growth "$part"
done
"$python" -m benchmarks.peers all --json
