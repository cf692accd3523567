"""Peers seen, with what they said and what they did: local knowledge, never gossip.

Bounded: beyond PEERS_KNOWN_MAX the longest-unseen peers that never held anything go first.
These rows are commits without a sync: losing the last second of them costs nothing.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Final

from dstore.core.peerid import PeerId
from dstore.limits import (
    FAULT_DETAIL_CHARS_MAX,
    FAULTS_KEPT_MAX,
    KAD_ADDRESSES_PER_PEER_MAX,
    PEER_TEXT_CHARS_MAX,
    PEERS_KNOWN_MAX,
)
from dstore.storage.database import Database
from dstore.storage.rows import Fault, PeerRow

_COLUMNS: Final = (
    "peer, addresses, role, free_bytes, domains, first_seen, last_seen, failures, last_failed,"
    " faults"
)
_SELECT: Final = f"SELECT {_COLUMNS} FROM peers"  # noqa: S608 (a constant)
_DOMAINS_MAX: Final = 16
_EVICTED_AT_ONCE: Final = 100  # so that a full table does not evict at every new peer


class PeerTables:
    """The part of the catalog about other nodes."""

    _db: Database
    _peers_max: int = PEERS_KNOWN_MAX

    def saw_peer(self, peer: PeerId, addresses: Sequence[str], now: float) -> None:
        """The peer answered at `now`: its failures are forgiven.  Non-empty `addresses`
        replace those known."""
        kept = _texts(addresses, KAD_ADDRESSES_PER_PEER_MAX)
        with self._db.transaction(durable=False) as connection:
            self._ensure(connection, peer, now)
            connection.execute(
                "UPDATE peers SET last_seen = max(last_seen, ?), failures = 0,"
                " addresses = CASE WHEN ? THEN ? ELSE addresses END WHERE peer = ?",
                (now, bool(kept), json.dumps(kept), peer.binary),
            )

    def peer_terms(
        self,
        peer: PeerId,
        role: str,
        free_bytes: int,
        domains: Sequence[str],
        now: float,
    ) -> None:
        """What the peer's Hello said, and the failure domains in which it was reached then."""
        with self._db.transaction(durable=False) as connection:
            self._ensure(connection, peer, now)
            connection.execute(
                "UPDATE peers SET role = ?, free_bytes = ?, domains = ?,"
                " last_seen = max(last_seen, ?), failures = 0 WHERE peer = ?",
                (
                    role[:PEER_TEXT_CHARS_MAX],
                    min(free_bytes, 2**63 - 1),
                    json.dumps(_texts(domains, _DOMAINS_MAX)),
                    now,
                    peer.binary,
                ),
            )

    def peer_failed(self, peer: PeerId, now: float) -> None:
        """The peer did not answer; nothing happens where it is not known."""
        with self._db.transaction(durable=False) as connection:
            connection.execute(
                "UPDATE peers SET failures = failures + 1, last_failed = ? WHERE peer = ?",
                (now, peer.binary),
            )

    def record_fault(self, peer: PeerId, kind: str, detail: str, now: float) -> None:
        """The peer did something wrong: remembered, the oldest of a long log forgotten."""
        with self._db.transaction(durable=False) as connection:
            connection.execute(
                "INSERT INTO faults (peer, kind, detail, time) VALUES (?, ?, ?, ?)",
                (peer.binary, kind[:PEER_TEXT_CHARS_MAX], detail[:FAULT_DETAIL_CHARS_MAX], now),
            )
            connection.execute(
                "UPDATE peers SET faults = faults + 1 WHERE peer = ?", (peer.binary,)
            )
            connection.execute(
                "DELETE FROM faults WHERE id <= (SELECT max(id) FROM faults) - ?",
                (FAULTS_KEPT_MAX,),
            )

    def faults(self, peer: PeerId | None = None) -> list[Fault]:
        """The recorded faults of the peer (None: of all), oldest first."""
        with self._db.reading() as connection:
            if peer is None:
                rows = connection.execute("SELECT peer, kind, detail, time FROM faults ORDER BY id")
            else:
                rows = connection.execute(
                    "SELECT peer, kind, detail, time FROM faults WHERE peer = ? ORDER BY id",
                    (peer.binary,),
                )
            return [Fault(PeerId(p), kind, detail, time) for p, kind, detail, time in rows]

    def peer(self, peer: PeerId) -> PeerRow | None:
        """What is known of the peer, or None."""
        with self._db.reading() as connection:
            row = connection.execute(f"{_SELECT} WHERE peer = ?", (peer.binary,)).fetchone()
        return _peer(row) if row else None

    def peers(self, limit: int, role: str | None = None) -> list[PeerRow]:
        """The peers last seen, newest first; with `role`, those that had it then."""
        with self._db.reading() as connection:
            rows = connection.execute(
                f"{_SELECT} WHERE ?1 IS NULL OR role = ?1 ORDER BY last_seen DESC LIMIT ?2",
                (role, limit),
            ).fetchall()
        return [_peer(row) for row in rows]

    def _ensure(self, connection: sqlite3.Connection, peer: PeerId, now: float) -> None:
        """A row for the peer; a new one may cost others theirs."""
        inserted = connection.execute(
            "INSERT OR IGNORE INTO peers (peer, addresses, first_seen, last_seen, useful)"
            " VALUES (?1, '[]', ?2, ?2, EXISTS (SELECT 1 FROM placements WHERE peer = ?1))",
            (peer.binary, now),
        ).rowcount
        if inserted <= 0:
            return
        (count,) = connection.execute("SELECT count(*) FROM peers").fetchone()
        if count > self._peers_max:
            connection.execute(
                "DELETE FROM peers WHERE peer IN (SELECT peer FROM peers WHERE peer != ?"
                " ORDER BY useful, last_seen LIMIT ?)",
                (peer.binary, count - self._peers_max + min(_EVICTED_AT_ONCE, count // 10)),
            )


def _texts(texts: Sequence[str], count_max: int) -> list[str]:
    """At most so many, none of them long: they come from peers."""
    return [text for text in texts if len(text) <= PEER_TEXT_CHARS_MAX][:count_max]


def _peer(
    row: tuple[bytes, str, str | None, int | None, str, float, float, int, float | None, int],
) -> PeerRow:
    peer, addresses, role, free, domains, first_seen, last_seen, failures, failed, faults = row
    return PeerRow(
        peer=PeerId(peer),
        addresses=tuple(json.loads(addresses)),
        role=role,
        free_bytes=free,
        domains=tuple(json.loads(domains)),
        first_seen=first_seen,
        last_seen=last_seen,
        failures=failures,
        last_failed=failed,
        faults=faults,
    )
