"""What dstore's tests are made of, shipped so that others can test against dstore too.

- `memory_network`: nodes, streams and faults without sockets (`async with memory_network()`);
- `deterministic`: `run_deterministic(seed, main)`, the same events for the same seed;
- `network_suite`, `blockstore_suite`: the contracts of `dstore.network.streams` and
  `dstore.storage.blockstore` as test classes, for every implementation;
- faulty wrappers for the contracts of `dstore.storage`.

A scenario takes its hosts from the network, its `Runtime` from `simulated_runtime`, runs
under `run_deterministic`, and compares or searches `network.events`.  Nothing here is
imported by the rest of dstore, and nothing here knows libp2p.
"""
