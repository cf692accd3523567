"""What this node's owner keeps: listing pins, and letting go of them.

Letting go of a protected root signs a pin record that has ended and passes it to the
holders; they keep the slots in their trash for a while, in case it was a mistake.  Until they
have been told the pin stays, as one of this node alone: what is cut short can be repeated.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import trio

from dstore.core import wire
from dstore.core.cid import CID
from dstore.core.peerid import PeerId
from dstore.errors import NetworkError, NotFoundError, PeerError
from dstore.limits import HELLO_SECONDS, SLOT_REFS_MAX
from dstore.network.fragments_client import FragmentsClient
from dstore.network.streams import Network
from dstore.runtime import Runtime, open_plain_nursery
from dstore.service.leases import Leases
from dstore.service.pinrecords import PinRecords
from dstore.service.progress import Pin
from dstore.service.rootturns import RootTurns
from dstore.service.stores import Stores
from dstore.storage.rows import PinRow


@dataclass
class _Held:
    """What may be held of a root, and where; other roots want the slots of `shared` segments
    too."""

    slots: dict[PeerId, list[wire.SlotRef]] = field(default_factory=dict)
    shared: set[CID] = field(default_factory=set)


class Pins:
    """The pins of this node's owner."""

    def __init__(
        self,
        stores: Stores,
        network: Network,
        client: FragmentsClient,
        leases: Leases,
        records: PinRecords,
        turns: RootTurns,
        runtime: Runtime,
    ) -> None:
        self._stores = stores
        self._network = network
        self._client = client
        self._leases = leases
        self._records = records
        self._turns = turns
        self._runtime = runtime

    async def all(self) -> list[Pin]:
        """All pins, oldest first."""
        rows = await self._runtime.workers.run(self._stores.catalog.pins)
        return [_pin(row) for row in rows]

    async def remove(self, root: CID) -> int:
        """Let go of the root here and at its holders; returns how many holders confirmed.  Adds
        of it that are under way end with an error.  Raises NotFoundError where it is not pinned."""
        run, catalog = self._runtime.workers.run, self._stores.catalog
        async with self._turns.letting_go(root):
            pin = await run(catalog.get_pin, root)
            if pin is None:
                raise NotFoundError(f"{root} is not pinned here; `dstore pin ls` lists what is")
            envelope = await run(self._end, pin)
            told = await self._tell_holders(root, envelope) if envelope is not None else 0
            await run(catalog.delete_pin, root)
            await run(catalog.forget_manifests, root)
        return told

    def _end(self, pin: PinRow) -> bytes | None:
        """In a worker: the record that ends the wish; the pin claims no holder from here on."""
        ended = replace(pin, mode="local", expires=self._runtime.clock.now())
        self._stores.catalog.put_pin(ended)
        record = self._records.ended(pin.root)
        return record.envelope if record is not None else None

    async def _tell_holders(self, root: CID, envelope: bytes) -> int:
        """Bring the end of the pin record to everybody with a slot."""
        held = await self._runtime.workers.run(self._held, root)
        for ref in held.slots.pop(self._network.peer_id, ()):
            await self._runtime.workers.run(self._leases.release, ref.segment, ref.slot)
        confirmed: list[PeerId] = []
        with trio.move_on_after(HELLO_SECONDS):
            async with open_plain_nursery() as nursery:
                for peer in held.slots:
                    nursery.start_soon(self._tell, peer, root, held, envelope, confirmed)
        return len(confirmed)

    def _held(self, root: CID) -> _Held:
        """In a worker.  An add that was cut short may have left slots too."""
        catalog, now = self._stores.catalog, self._runtime.clock.now()

        def wanted(other: CID) -> bool:
            record = catalog.pin_record(self._records.owner, other)
            return record is not None and record.expires > now

        held = _Held()
        for segment in {one for row in catalog.manifests_of(root) for one in row.segments}:
            if any(wanted(other) for other in catalog.roots_with_segment(segment)):
                held.shared.add(segment)
            for one in catalog.placements(segment):
                held.slots.setdefault(one.peer, []).append(wire.SlotRef(segment, one.slot))
        return held

    async def _tell(
        self, peer: PeerId, root: CID, held: _Held, envelope: bytes, confirmed: list[PeerId]
    ) -> None:
        """One that refuses may know a newer record, of another device: that is ended then."""
        refs = held.slots[peer]
        try:
            done = await self._release(peer, refs, envelope, held.shared)
            if not done:
                await self._records.learn(root, peer)
                newest = await self._runtime.workers.run(self._records.ended, root)
                if newest is not None and newest.envelope != envelope:
                    done = await self._release(peer, refs, newest.envelope, held.shared)
        except (NetworkError, PeerError):
            return
        if done:
            confirmed.append(peer)

    async def _release(
        self, peer: PeerId, refs: list[wire.SlotRef], envelope: bytes, shared: Collection[CID]
    ) -> bool:
        """Whether the peer keeps none of the slots, but for those that are wanted further."""
        done = True
        for start in range(0, len(refs), SLOT_REFS_MAX):
            batch = tuple(refs[start : start + SLOT_REFS_MAX])
            for answer in await self._client.release(peer, wire.Release(batch, (envelope,))):
                done &= answer.refusal is None or answer.segment in shared
        return done


def _pin(row: PinRow) -> Pin:
    code = (row.k, row.m) if row.k is not None and row.m is not None else None
    return Pin(row.root, row.mode, row.name, row.created, row.expires, code)
