"""The catalog's schema, as the steps that lead to it; steps are only ever added.

`PRAGMA user_version` counts the steps applied.  CIDs are stored in their binary form; a
column named `*_key` holds the CIDv1 form, so that a root is found by either of its spellings.
"""

from __future__ import annotations

from typing import Final

_V1: Final = (
    "CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
    # What is kept and why.  A set is everything one pin, slot or operation keeps.
    """CREATE TABLE operations (
        id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, started REAL NOT NULL)""",
    """CREATE TABLE reference_sets (
        id INTEGER PRIMARY KEY AUTOINCREMENT, kind INTEGER NOT NULL, key BLOB NOT NULL,
        released INTEGER NOT NULL DEFAULT 0)""",
    "CREATE UNIQUE INDEX reference_sets_key ON reference_sets (kind, key) WHERE released = 0",
    """CREATE TABLE block_references (
        multihash BLOB NOT NULL, set_id INTEGER NOT NULL,
        PRIMARY KEY (multihash, set_id)) WITHOUT ROWID""",
    "CREATE INDEX block_references_set ON block_references (set_id)",
    # The owner's side.
    """CREATE TABLE pins (
        root_key BLOB PRIMARY KEY, root BLOB NOT NULL, mode TEXT NOT NULL, name TEXT,
        created REAL NOT NULL, expires REAL, k INTEGER, m INTEGER, manifest BLOB)
        WITHOUT ROWID""",
    """CREATE TABLE manifests (
        id INTEGER PRIMARY KEY, root_key BLOB NOT NULL, root BLOB NOT NULL,
        manifest BLOB NOT NULL, k INTEGER NOT NULL, m INTEGER NOT NULL,
        bytes INTEGER NOT NULL, blocks INTEGER NOT NULL, UNIQUE (root_key, manifest))""",
    """CREATE TABLE manifest_segments (
        manifest_id INTEGER NOT NULL REFERENCES manifests (id) ON DELETE CASCADE,
        position INTEGER NOT NULL, segment BLOB NOT NULL,
        PRIMARY KEY (manifest_id, position)) WITHOUT ROWID""",
    "CREATE INDEX manifest_segments_segment ON manifest_segments (segment)",
    """CREATE TABLE placements (
        segment BLOB NOT NULL, slot INTEGER NOT NULL, peer BLOB NOT NULL,
        expires REAL NOT NULL, lease BLOB, last_answered REAL,
        PRIMARY KEY (segment, slot, peer)) WITHOUT ROWID""",
    "CREATE INDEX placements_peer ON placements (peer)",
    # The holder's side.
    """CREATE TABLE held_slots (
        segment BLOB NOT NULL, slot INTEGER NOT NULL, owner BLOB NOT NULL,
        root BLOB NOT NULL, manifest BLOB NOT NULL, bytes INTEGER NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('reserved', 'held', 'trash')),
        lease BLOB, expires REAL NOT NULL, updated REAL NOT NULL,
        PRIMARY KEY (segment, slot, owner)) WITHOUT ROWID""",
    "CREATE INDEX held_slots_state ON held_slots (state, updated)",
    """CREATE TABLE pin_records (
        owner BLOB NOT NULL, root_key BLOB NOT NULL, root BLOB NOT NULL,
        seq INTEGER NOT NULL, expires REAL NOT NULL, envelope BLOB NOT NULL,
        keep_until REAL NOT NULL, PRIMARY KEY (owner, root_key)) WITHOUT ROWID""",
    "CREATE INDEX pin_records_root ON pin_records (root_key)",
    # Peers.
    """CREATE TABLE peers (
        peer BLOB PRIMARY KEY, addresses TEXT NOT NULL, role TEXT, free_bytes INTEGER,
        domains TEXT NOT NULL DEFAULT '[]', first_seen REAL NOT NULL, last_seen REAL NOT NULL,
        failures INTEGER NOT NULL DEFAULT 0, last_failed REAL,
        faults INTEGER NOT NULL DEFAULT 0, useful INTEGER NOT NULL DEFAULT 0)
        WITHOUT ROWID""",
    "CREATE INDEX peers_eviction ON peers (useful, last_seen)",
    "CREATE INDEX peers_recent ON peers (last_seen)",
    """CREATE TABLE faults (
        id INTEGER PRIMARY KEY AUTOINCREMENT, peer BLOB NOT NULL, kind TEXT NOT NULL,
        detail TEXT NOT NULL, time REAL NOT NULL)""",
    "CREATE INDEX faults_peer ON faults (peer)",
)

_V2: Final = (
    # What is still to come of a reserved slot: the rest takes up its room already.
    "ALTER TABLE held_slots ADD COLUMN missing INTEGER NOT NULL DEFAULT 0",
    "UPDATE held_slots SET missing = bytes WHERE state = 'reserved'",
    # How much is held under a manifest, and whether anything still is.
    "CREATE INDEX held_slots_manifest ON held_slots (manifest, state, bytes)",
)

CATALOG_STEPS: Final[tuple[tuple[str, ...], ...]] = (_V1, _V2)
