"""What the owner of data keeps about it: pins, manifests, and which peer holds which slot.

Holders use the same placement table for the holder map that they were given: it says who
else can be asked when the DHT is silent.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from typing import Final

from dstore.core.cid import CID
from dstore.core.peerid import PeerId
from dstore.errors import DstoreError
from dstore.storage.catalog.references import ReferenceTables, kept_for, mark_released
from dstore.storage.database import Database
from dstore.storage.records import RecordFiles, RecordKind, pack_pin, unpack_pin
from dstore.storage.rows import ManifestRow, PinRow, Placement, ReferenceKind, pin_key

# Of a row of `manifests`.  Its CID is of version 1, dag-cbor: two bytes, then the multihash.
_OWN: Final = (
    "EXISTS (SELECT 1 FROM block_references JOIN reference_sets ON reference_sets.id = set_id"  # noqa: S608 (constants)
    f" WHERE multihash = substr(manifests.manifest, 3) AND kind = {int(ReferenceKind.LOCAL_PIN):d}"
    " AND released = 0)"
)
# A slot may be wanted under other manifests than the one that its row names: equal subtrees
# share segments.
_KEPT: Final = (
    "EXISTS (SELECT 1 FROM held_slots WHERE held_slots.manifest = manifests.manifest)"  # noqa: S608
    f" OR {_OWN}"
    " OR EXISTS (SELECT 1 FROM manifest_segments JOIN held_slots USING (segment)"
    " WHERE manifest_id = manifests.id)"
)


def root_key(root: CID) -> bytes:
    """The CIDv1 form of a root: the same for both spellings of a dag-pb root."""
    return root.binary if root.version == 1 else CID.v1(root.codec, root.multihash).binary


class OwnerTables(ReferenceTables):
    """The part of the catalog that the owner's side uses."""

    _db: Database
    _records: RecordFiles | None
    # Held from reading a row to writing the record file and the row that follow from it.
    _promises: threading.Lock

    # --- Pins --------------------------------------------------------------------------

    def put_pin(self, pin: PinRow) -> None:
        """Remember the pin, in place of an earlier one of the same root.  With record files,
        the file is durable first."""
        self.change_pin(pin.root, lambda _: pin)

    def change_pin(self, root: CID, change: Callable[[PinRow | None], PinRow]) -> None:
        """Remember what `change` makes of the root's pin, or of its absence, in one step: no
        other writer comes between, who must not be called from it."""
        with self._promises:
            known = self.get_pin(root)
            pin = change(known)
            if pin == known:
                return
            if self._records is not None:
                self._records.put(RecordKind.PIN, root_key(root), pack_pin(pin))
            try:
                self._insert_pin(pin)
            except DstoreError:
                if known is None and self._records is not None:  # it would come back some day
                    self._records.delete(RecordKind.PIN, root_key(root))
                raise

    def _restore_pin(self, pin: PinRow) -> None:
        """From its file, where the table has none; synced by whoever is next."""
        if self.get_pin(pin.root) is None:
            self._insert_pin(pin, durable=False)

    def _insert_pin(self, pin: PinRow, *, durable: bool = True) -> None:
        with self._db.transaction(durable=durable) as connection:
            connection.execute(
                "INSERT OR REPLACE INTO pins"
                " (root_key, root, mode, name, created, expires, k, m, manifest)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    root_key(pin.root),
                    pin.root.binary,
                    pin.mode,
                    pin.name,
                    pin.created,
                    pin.expires,
                    pin.k,
                    pin.m,
                    pin.manifest.binary if pin.manifest else None,
                ),
            )

    def get_pin(self, root: CID) -> PinRow | None:
        """The pin of this root in either spelling, or None."""
        with self._db.reading() as connection:
            row = connection.execute(
                "SELECT root, mode, name, created, expires, k, m, manifest FROM pins"
                " WHERE root_key = ?",
                (root_key(root),),
            ).fetchone()
        return _pin(row) if row else None

    def pins(self) -> list[PinRow]:
        """All pins, oldest first."""
        with self._db.reading() as connection:
            rows = connection.execute(
                "SELECT root, mode, name, created, expires, k, m, manifest FROM pins"
                " ORDER BY created, root"
            ).fetchall()
        return [_pin(row) for row in rows]

    def delete_pin(self, root: CID) -> bool:
        """Forget the pin and release what it keeps, all or nothing; False where there is
        none."""
        key = root_key(root)
        with self._promises:
            if self._records is not None:  # first: what is left of a pin would come back some day
                self._records.delete(RecordKind.PIN, key)
            with self._db.transaction() as connection:
                deleted = connection.execute("DELETE FROM pins WHERE root_key = ?", (key,)).rowcount
                if deleted and pin_key(root) not in _pin_keys(connection):
                    mark_released(connection, ReferenceKind.LOCAL_PIN, pin_key(root))
        self.finish_releases()
        return deleted > 0

    def release_stale_pins(self) -> int:
        """At start-up: release what is kept for pins that do not exist, as a dead process may
        have left it; returns of how many.  One that died between a pin's file and its row left
        the pin: it is there again."""
        with self._db.reading() as connection:
            kept = set(kept_for(connection, ReferenceKind.LOCAL_PIN)) - _pin_keys(connection)
        if kept and self._records is not None:
            for _, packed in self._records.load_all(RecordKind.PIN):
                pin = unpack_pin(packed)
                if pin_key(pin.root) in kept:
                    self._restore_pin(pin)
        with self._db.transaction() as connection:
            stale = kept - _pin_keys(connection)
            for key in stale:
                mark_released(connection, ReferenceKind.LOCAL_PIN, key)
        self.finish_releases()
        return len(stale)

    # --- Manifests ---------------------------------------------------------------------

    def put_manifest(self, row: ManifestRow) -> None:
        """Remember a manifest of a root; its block is durable already."""
        with self._db.transaction(durable=False) as connection:
            cursor = connection.execute(
                "INSERT OR IGNORE INTO manifests"
                " (root_key, root, manifest, k, m, bytes, blocks) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    root_key(row.root),
                    row.root.binary,
                    row.manifest.binary,
                    row.k,
                    row.m,
                    row.bytes,
                    row.blocks,
                ),
            )
            if cursor.rowcount:  # equal manifests list equal segments
                manifest_id = cursor.lastrowid
                connection.executemany(
                    "INSERT INTO manifest_segments (manifest_id, position, segment)"
                    " VALUES (?, ?, ?)",
                    (
                        (manifest_id, position, segment.binary)
                        for position, segment in enumerate(row.segments)
                    ),
                )

    def manifests_of(self, root: CID) -> list[ManifestRow]:
        """The manifests known for the root, in the order they became known."""
        with self._db.reading() as connection:
            rows = connection.execute(
                "SELECT id, root, manifest, k, m, bytes, blocks FROM manifests"
                " WHERE root_key = ? ORDER BY id",
                (root_key(root),),
            ).fetchall()
            return [_manifest(connection, row) for row in rows]

    def manifests_named(self, root: CID, count: int) -> list[CID]:
        """At most `count` manifests of the root, in turns the one of which most bytes are held
        here (all of a pin's own) and the one known for longest.  To come before the true one,
        an invented one must have been brought first or cost as many bytes."""
        with self._db.reading() as connection:
            rows = connection.execute(
                "SELECT manifest FROM (SELECT manifest, row_number() OVER (ORDER BY id) AS age,"  # noqa: S608
                " row_number() OVER (ORDER BY held DESC, id) AS size FROM"
                f" (SELECT id, manifest, CASE WHEN {_OWN} THEN bytes ELSE"
                " (SELECT coalesce(sum(held_slots.bytes), 0) FROM held_slots"
                " WHERE held_slots.manifest = manifests.manifest AND state = 'held')"
                " END AS held FROM manifests WHERE root_key = ?))"
                " ORDER BY min(age, size), size LIMIT ?",
                (root_key(root), count),
            ).fetchall()
        return [CID.from_bytes(manifest) for (manifest,) in rows]

    def forget_manifests(self, root: CID) -> None:
        """Forget those of the root that neither a slot here nor a pin keeps, and who holds what
        of segments that none lists any more."""
        key = root_key(root)
        with self._db.transaction(durable=False) as connection:
            segments = connection.execute(
                "SELECT DISTINCT segment FROM manifests JOIN manifest_segments ON manifest_id = id"
                " WHERE root_key = ?",
                (key,),
            ).fetchall()
            connection.execute(
                f"DELETE FROM manifests WHERE root_key = ? AND NOT ({_KEPT})",  # noqa: S608
                (key,),
            )
            connection.executemany(
                "DELETE FROM placements WHERE segment = ? AND NOT EXISTS (SELECT 1"
                " FROM manifest_segments WHERE manifest_segments.segment = placements.segment)",
                segments,
            )

    def roots_with_segment(self, segment: CID) -> list[CID]:
        """The roots of which a known manifest lists the segment."""
        with self._db.reading() as connection:
            rows = connection.execute(
                "SELECT DISTINCT root FROM manifests JOIN manifest_segments"
                " ON manifest_id = id WHERE segment = ?",
                (segment.binary,),
            ).fetchall()
        return [CID.from_bytes(root) for (root,) in rows]

    def manifests_with(self, segment: CID) -> list[tuple[CID, CID]]:
        """(root, manifest) of each known manifest that lists the segment."""
        with self._db.reading() as connection:
            rows = connection.execute(
                "SELECT DISTINCT root, manifest FROM manifests JOIN manifest_segments"
                " ON manifest_id = id WHERE segment = ?",
                (segment.binary,),
            ).fetchall()
        return [(CID.from_bytes(root), CID.from_bytes(manifest)) for root, manifest in rows]

    # --- Placements --------------------------------------------------------------------

    def put_placements(self, placements: list[Placement], *, durable: bool = False) -> None:
        """Remember that peers hold slots, all or none; on disk on return where `durable`.  A
        missing lease or time of answer does not erase one that is known."""
        with self._db.transaction(durable=durable) as connection:
            connection.executemany(
                "INSERT INTO placements (segment, slot, peer, expires, lease, last_answered)"
                " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (segment, slot, peer) DO UPDATE SET"
                " expires = excluded.expires, lease = coalesce(excluded.lease, lease),"
                " last_answered = coalesce(excluded.last_answered, last_answered)",
                (
                    (p.segment.binary, p.slot, p.peer.binary, p.expires, p.lease, p.last_answered)
                    for p in placements
                ),
            )
            connection.executemany(
                "UPDATE peers SET useful = 1 WHERE peer = ? AND useful = 0",
                {(p.peer.binary,) for p in placements},
            )

    def placements(self, segment: CID) -> list[Placement]:
        """Who holds which slot of the segment, by slot."""
        with self._db.reading() as connection:
            rows = connection.execute(
                "SELECT slot, peer, expires, lease, last_answered FROM placements"
                " WHERE segment = ? ORDER BY slot, peer",
                (segment.binary,),
            ).fetchall()
        return [
            Placement(segment, slot, PeerId(peer), expires, lease, last_answered)
            for slot, peer, expires, lease, last_answered in rows
        ]

    def peers_promising(self, root: CID, count: int) -> set[PeerId]:
        """Who gave a lease for the first segment of one of the root's first `count` manifests."""
        with self._db.reading() as connection:
            rows = connection.execute(
                "SELECT DISTINCT peer FROM manifest_segments JOIN placements USING (segment)"
                " WHERE position = 0 AND lease IS NOT NULL AND manifest_id IN"
                " (SELECT id FROM manifests WHERE root_key = ? ORDER BY id LIMIT ?)",
                (root_key(root), count),
            ).fetchall()
        return {PeerId(peer) for (peer,) in rows}

    def segments_with_leases(self, until: float, after: CID | None, count: int) -> list[CID]:
        """Segments with a slot whose lease, as far as is known, ends before `until`: the next
        `count` in the order of their CIDs' bytes, `after` that one."""
        with self._db.reading() as connection:
            rows = connection.execute(
                "SELECT DISTINCT segment FROM placements WHERE segment > ?"
                " AND lease IS NOT NULL AND expires < ? ORDER BY segment LIMIT ?",
                (after.binary if after is not None else b"", until, count),
            ).fetchall()
        return [CID.from_bytes(segment) for (segment,) in rows]

    def placement_count(self) -> int:
        """How many slots other peers are known to hold."""
        return self._count("SELECT count(*) FROM placements")

    def pin_count(self) -> int:
        """How many roots are pinned."""
        return self._count("SELECT count(*) FROM pins")

    def _count(self, query: str) -> int:
        with self._db.reading() as connection:
            count: int = connection.execute(query).fetchone()[0]
        return count


def forget_manifests_with(connection: sqlite3.Connection, segment: CID) -> None:
    """Within a transaction: forget the manifests that list the segment and that neither a slot
    here nor a pin keeps."""
    connection.execute(
        "DELETE FROM manifests WHERE id IN"  # noqa: S608 (constants)
        f" (SELECT manifest_id FROM manifest_segments WHERE segment = ?) AND NOT ({_KEPT})",
        (segment.binary,),
    )


def _pin_keys(connection: sqlite3.Connection) -> set[bytes]:
    """The reference keys of all pins; a key may stand for several roots."""
    rows = connection.execute("SELECT root FROM pins")
    return {pin_key(CID.from_bytes(root)) for (root,) in rows}


def _pin(row: tuple[bytes, str, str | None, float, float | None, int, int, bytes]) -> PinRow:
    root, mode, name, created, expires, k, m, manifest = row
    return PinRow(
        root=CID.from_bytes(root),
        mode="protected" if mode == "protected" else "local",
        name=name,
        created=created,
        expires=expires,
        k=k,
        m=m,
        manifest=CID.from_bytes(manifest) if manifest else None,
    )


def _manifest(
    connection: sqlite3.Connection, row: tuple[int, bytes, bytes, int, int, int, int]
) -> ManifestRow:
    manifest_id, root, manifest, k, m, size, blocks = row
    segments = connection.execute(
        "SELECT segment FROM manifest_segments WHERE manifest_id = ? ORDER BY position",
        (manifest_id,),
    )
    return ManifestRow(
        root=CID.from_bytes(root),
        manifest=CID.from_bytes(manifest),
        k=k,
        m=m,
        bytes=size,
        blocks=blocks,
        segments=tuple(CID.from_bytes(segment) for (segment,) in segments),
    )
