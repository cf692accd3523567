"""What this node's owner keeps: listing pins, and letting go of them.

Letting go of a protected root signs a pin record that has ended and passes it to the
holders; they keep the slots in their trash for a while, in case it was a mistake.
"""

from __future__ import annotations

import trio

from dstore.core import wire
from dstore.core.cid import CID
from dstore.core.envelope import SigningKey
from dstore.core.peerid import PeerId
from dstore.core.pinrecord import PinRecord, open_pin_record
from dstore.errors import NetworkError, NotFoundError, PeerError
from dstore.limits import HELLO_SECONDS, SLOT_REFS_MAX
from dstore.network.fragments_client import FragmentsClient
from dstore.network.streams import Network
from dstore.runtime import Runtime, open_plain_nursery
from dstore.service.leases import Leases
from dstore.service.progress import Pin
from dstore.service.stores import Stores
from dstore.storage.rows import PinRow, ReferenceKind, pin_key


class Pins:
    """The pins of this node's owner."""

    def __init__(
        self,
        stores: Stores,
        network: Network,
        client: FragmentsClient,
        leases: Leases,
        owner: SigningKey,
        runtime: Runtime,
    ) -> None:
        self._stores = stores
        self._network = network
        self._client = client
        self._leases = leases
        self._owner = owner
        self._runtime = runtime

    async def all(self) -> list[Pin]:
        """All pins, oldest first."""
        rows = await self._runtime.workers.run(self._stores.catalog.pins)
        return [_pin(row) for row in rows]

    async def remove(self, root: CID) -> int:
        """Let go of the root here and at its holders; returns how many holders confirmed.
        Raises NotFoundError where it is not pinned."""
        pin = await self._runtime.workers.run(self._stores.catalog.get_pin, root)
        if pin is None:
            raise NotFoundError(f"{root} is not pinned here; `dstore pin ls` lists what is")
        told = await self._tell_holders(pin)

        def work() -> None:
            self._stores.catalog.delete_pin(pin.root)
            self._stores.catalog.release(ReferenceKind.LOCAL_PIN, pin_key(pin.root))
            self._stores.catalog.forget_manifests(pin.root)

        await self._runtime.workers.run(work)
        return told

    async def _tell_holders(self, pin: PinRow) -> int:
        """Sign the end of the pin record and bring it to everybody with a slot."""
        envelope, slots = await self._runtime.workers.run(self._end_record, pin.root)
        for ref in slots.pop(self._network.peer_id, ()):
            await self._runtime.workers.run(self._leases.release, ref.segment, ref.slot)
        confirmed: list[PeerId] = []
        with trio.move_on_after(HELLO_SECONDS):
            async with open_plain_nursery() as nursery:
                for peer, refs in slots.items():
                    nursery.start_soon(self._tell, peer, refs, envelope, confirmed)
        return len(confirmed)

    def _end_record(self, root: CID) -> tuple[bytes, dict[PeerId, list[wire.SlotRef]]]:
        """In a worker: the record that ends the wish, and who holds what under it; nobody
        where no record was ever signed.  An add that was cut short may have one too."""
        catalog, now = self._stores.catalog, self._runtime.clock.now()
        known = catalog.pin_record(self._owner.public, root)
        if known is None:
            return b"", {}
        ended = PinRecord(
            root=root,
            manifests=open_pin_record(known.envelope, now).record.manifests,
            owner=self._owner.public,
            seq=known.seq + 1,
            created=int(now),
            expires=int(now),
        ).sign(self._owner)
        catalog.put_pin_record(
            self._owner.public, root, ended.record.seq, float(now), ended.envelope
        )
        slots: dict[PeerId, list[wire.SlotRef]] = {}
        for row in catalog.manifests_of(root):
            for segment in row.segments:
                for one in catalog.placements(segment):
                    slots.setdefault(one.peer, []).append(wire.SlotRef(segment, one.slot))
        return ended.envelope, slots

    async def _tell(
        self,
        peer: PeerId,
        refs: list[wire.SlotRef],
        envelope: bytes,
        confirmed: list[PeerId],
    ) -> None:
        try:
            for start in range(0, len(refs), SLOT_REFS_MAX):
                batch = tuple(refs[start : start + SLOT_REFS_MAX])
                await self._client.release(peer, wire.Release(batch, (envelope,)))
        except (NetworkError, PeerError):
            return
        confirmed.append(peer)


def _pin(row: PinRow) -> Pin:
    code = (row.k, row.m) if row.k is not None and row.m is not None else None
    return Pin(row.root, row.mode, row.name, row.created, row.expires, code)
