"""What this node has promised: leases signed, extended while an owner wants them, let go after.

A slot is wanted as long as any pin record of its owner is valid that names a manifest which
lists the slot's segment: two roots may share a segment, and the end of one is not the end of
the other.  All methods work on the stores and are called in workers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import cache
from itertools import islice

from dstore.core import wire
from dstore.core.cid import CID
from dstore.core.envelope import SigningKey
from dstore.core.manifest import Segment
from dstore.core.peerid import PeerId
from dstore.core.pinrecord import Lease, open_pin_record
from dstore.errors import CorruptStore, DataError, NotFoundError, ProtocolViolation, Refused
from dstore.runtime import Clock
from dstore.service.stores import Stores
from dstore.storage.rows import HeldSlot

log = logging.getLogger(__name__)


class Leases:
    """Signs and keeps this node's leases."""

    def __init__(
        self,
        stores: Stores,
        holder: PeerId,
        key: SigningKey,
        clock: Clock,
        domains: tuple[str, ...],
        lease_seconds: int,
    ) -> None:
        self._stores = stores
        self._holder = holder
        self._key = key
        self._clock = clock
        self._domains = domains
        self._lease_seconds = lease_seconds

    def wanted_until(self, row: HeldSlot) -> float:
        """When the last valid pin record of the slot's owner for its segment ends, in unix
        seconds; 0 where none is valid."""
        catalog, now = self._stores.catalog, self._clock.now()
        listing: dict[CID, set[CID]] = {row.root: {row.manifest}}
        for root, manifest in catalog.manifests_with(row.segment):
            listing.setdefault(root, set()).add(manifest)
        until = 0.0
        for root, manifests in listing.items():
            known = catalog.pin_record(row.owner, root)
            if known is None or known.expires <= max(now, until):
                continue
            try:
                record = open_pin_record(known.envelope, now).record
            except ProtocolViolation:  # the clock was set back: the record was checked once
                continue
            if manifests.intersection(record.manifests):
                until = known.expires
        return until

    def promise(self, row: HeldSlot, cids: Sequence[CID]) -> bytes:
        """Sign the lease of a slot whose every block is durable here; it ends with the
        owner's wish at the latest.  Raises Refused."""
        catalog = self._stores.catalog
        missing = self._stores.blocks.has_many(cids).count(False)
        if missing:
            raise Refused(f"{missing} fragments of the slot are missing", wire.Refusal.INTERNAL)
        now = self._clock.now()
        until = self.wanted_until(row)
        if until <= now:
            raise Refused("no valid pin record wants the slot", wire.Refusal.EXPIRED)
        lease = Lease(
            holder=self._holder,
            owner=row.owner,
            segment=row.segment,
            slot=row.slot,
            bytes=row.bytes,
            domains=self._domains,
            issued=int(now),
            expires=min(int(now) + self._lease_seconds, int(until)),
            serial=catalog.next_serial(),
        )
        envelope = lease.sign(self._key).envelope
        catalog.hold_slot(row.segment, row.slot, envelope, float(lease.expires), now, row.owner)
        return envelope

    def renew(self, segment: CID, slot: int, owners: Sequence[bytes] = ()) -> wire.SlotAnswer:
        """A fresh lease for the slot: of the first of `owners` that has it here, else of
        whoever changed it last."""
        rows = [row for row in self._rows(segment, slot) if row.state == "held"]
        named = [row for owner in owners for row in rows if row.owner == owner]
        row = next(iter(named or rows), None)
        if row is None:
            return wire.SlotAnswer(segment, slot, refusal=wire.Refusal.NOT_FOUND)
        try:
            decoded = Segment.decode(self._stores.blocks.get(segment))
            cids = [cid for _, cid, _ in decoded.slot_blocks(slot)]
            return wire.SlotAnswer(segment, slot, lease=self.promise(row, cids))
        except (Refused, NotFoundError, CorruptStore, DataError) as error:
            ended = isinstance(error, Refused) and error.reason == wire.Refusal.EXPIRED
            if not ended:
                log.warning("slot %d of %s cannot be promised again: %s", slot, segment, error)
            reason = wire.Refusal.EXPIRED if ended else wire.Refusal.INTERNAL
            return wire.SlotAnswer(segment, slot, refusal=reason)

    def release(self, segment: CID, slot: int) -> wire.SlotAnswer:
        """Into the trash for every owner who does not want it any more."""
        rows = [row for row in self._rows(segment, slot) if row.state != "trash"]
        now = self._clock.now()
        # One that was promised again since it was judged stays.
        ended = [
            row
            for row in rows
            if self.wanted_until(row) <= now and self._stores.catalog.release_slot(row, now)
        ]
        if rows and not ended:
            return wire.SlotAnswer(segment, slot, refusal=wire.Refusal.POLICY)
        return wire.SlotAnswer(segment, slot)

    def let_go(self, count: int) -> list[HeldSlot]:
        """At most `count` held slots whose owner has ended every wish for them: the lease runs,
        and it never outlived the wish that it was given for, whatever the clock says."""
        catalog, now = self._stores.catalog, self._clock.now()

        @cache
        def ends(owner: bytes, root: CID) -> float:
            known = catalog.pin_record(owner, root)
            return known.expires if known is not None else math.nan

        def wanted(row: HeldSlot) -> bool:
            if not ends(row.owner, row.root) <= now:
                return True
            roots = catalog.roots_with_segment(row.segment)
            return any(ends(row.owner, root) > now for root in roots)

        running = (row for row in catalog.held_slots() if row.state == "held" and row.expires > now)
        return list(islice((row for row in running if not wanted(row)), count))

    def _rows(self, segment: CID, slot: int) -> list[HeldSlot]:
        """The slot's row of each owner, the one that changed last first."""
        rows = [row for row in self._stores.catalog.held_slots(segment) if row.slot == slot]
        return sorted(rows, key=lambda row: -row.updated)

    def take_records(self, envelopes: Sequence[bytes]) -> list[bytes]:
        """Keep the pin records of owners and roots that this node already has one of; the
        owners of all of them.  Raises Refused for one that is not properly signed."""
        catalog, now = self._stores.catalog, self._clock.now()
        owners: list[bytes] = []
        for envelope in envelopes:
            try:
                record = open_pin_record(envelope, now).record
            except ProtocolViolation as error:
                raise Refused(f"pin record: {error}", wire.Refusal.BAD_SIGNATURE) from error
            owners.append(record.owner)
            if catalog.pin_record(record.owner, record.root) is not None:
                catalog.put_pin_record(
                    record.owner, record.root, record.seq, float(record.expires), envelope
                )
        return owners

    def ending(self, count: int, after: HeldSlot | None = None) -> list[HeldSlot]:
        """At most `count` held slots, the first to end first, whose lease has less than half
        of its time left and can be made longer; of those behind `after`, where it is given."""
        soon = self._clock.now() + self._lease_seconds / 2
        rows = sorted(
            (
                row
                for row in self._stores.catalog.held_slots()
                if row.state == "held"
                and row.expires <= soon
                and (after is None or _end(row) > _end(after))
            ),
            key=_end,
        )
        found: list[HeldSlot] = []
        for row in rows:
            # A lease that ends with the owner's wish, to the second, cannot be made longer.
            if self.wanted_until(row) >= row.expires + 1:
                found.append(row)
                if len(found) >= count:
                    break
        return found


def _end(row: HeldSlot) -> tuple[float, bytes, int, bytes]:
    """By when its lease ends; many end in the same second."""
    return row.expires, row.segment.binary, row.slot, row.owner
