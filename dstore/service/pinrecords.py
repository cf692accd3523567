"""The owner's pin records: the newest known of a root, and the next one above it.

The owner's key may be in use on several devices, so a holder can know a newer record than this
catalog.  Who is refused for that asks the holder for it and signs above it.  Records of this
owner are opened whatever the clock says: they are told from others' by their signature.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence

from dstore.core.cid import CID
from dstore.core.envelope import SigningKey
from dstore.core.manifest import Manifest
from dstore.core.peerid import PeerId
from dstore.core.pinrecord import PinRecord, SignedPinRecord, open_pin_record
from dstore.errors import ProtocolViolation
from dstore.limits import CLOCK_SKEW_SECONDS_MAX, RECORD_MANIFESTS_MAX
from dstore.network.fragments_client import FragmentsClient
from dstore.network.streams import Network
from dstore.runtime import Runtime
from dstore.service.stores import Stores


class PinRecords:
    """Signs this node's owner's records, and learns of those that other devices signed."""

    def __init__(
        self,
        stores: Stores,
        network: Network,
        client: FragmentsClient,
        owner: SigningKey,
        runtime: Runtime,
    ) -> None:
        self._stores = stores
        self._network = network
        self._client = client
        self._owner = owner
        self._runtime = runtime
        self._signing = threading.Lock()  # from reading the newest to keeping the next

    @property
    def owner(self) -> bytes:
        """The key that signs."""
        return self._owner.public

    def wanted(self, manifest: Manifest, seconds: int) -> SignedPinRecord:
        """In a worker: the record that asks for the root under this manifest.

        It is the newest one where that names the manifest and has half of `seconds` left, else
        a new one, durable before any holder sees it.  Manifests named before stay.
        """
        root, now = manifest.root, self._runtime.clock.now()

        def choose(newest: PinRecord | None) -> PinRecord:
            named = newest.manifests if newest is not None and newest.expires > now else ()
            if (
                newest is not None
                and manifest.cid in named
                and newest.created <= now
                and newest.expires >= now + seconds / 2
            ):
                return newest
            others = tuple(one for one in named if one != manifest.cid)
            manifests = (manifest.cid, *others[: RECORD_MANIFESTS_MAX - 1])
            return self._next(newest, root, manifests, now, int(now) + seconds)

        return self._choose(root, choose)

    def ended(self, root: CID) -> SignedPinRecord | None:
        """In a worker: the record that ends the wish for the root, past by every clock that
        takes it; None where no record was ever signed."""
        now = self._runtime.clock.now()
        expires = max(0, int(now) - CLOCK_SKEW_SECONDS_MAX)

        def choose(newest: PinRecord | None) -> PinRecord:
            assert newest is not None  # a record is never forgotten for none
            if newest.created <= now and newest.expires <= expires:
                return newest
            return self._next(newest, root, newest.manifests, now, expires)

        if self._stores.catalog.pin_record(self.owner, root) is None:
            return None
        return self._choose(root, choose)

    async def learn(self, root: CID, peer: PeerId) -> None:
        """Ask the peer for the root's records and keep the owner's newest.  Raises NetworkError,
        PeerError."""
        if peer != self._network.peer_id:
            answer = await self._client.find_manifests(peer, root)
            await self._runtime.workers.run(self._keep, root, answer.pin_records)

    def _keep(self, root: CID, envelopes: Sequence[bytes]) -> None:
        """In a worker: what is not the owner's, or of another root, is passed over."""
        for envelope in envelopes:
            try:
                record = open_pin_record(envelope, math.inf).record
            except ProtocolViolation:
                continue
            about = record.root.codec, record.root.multihash  # in either spelling
            if record.owner == self.owner and about == (root.codec, root.multihash):
                self._stores.catalog.put_pin_record(
                    record.owner, record.root, record.seq, float(record.expires), envelope
                )

    def _choose(
        self, root: CID, choose: Callable[[PinRecord | None], PinRecord]
    ) -> SignedPinRecord:
        """What `choose` makes of the newest record: that one, or one above it, signed and
        kept."""
        catalog = self._stores.catalog
        with self._signing:
            while True:
                known = catalog.pin_record(self.owner, root)
                newest = open_pin_record(known.envelope, math.inf) if known is not None else None
                chosen = choose(newest.record if newest is not None else None)
                if newest is not None and chosen == newest.record:
                    return newest
                signed = chosen.sign(self._owner)
                if catalog.put_pin_record(
                    self.owner, root, chosen.seq, float(chosen.expires), signed.envelope
                ):
                    return signed
                # Another device brought a slot with a newer one to this node meanwhile.

    def _next(
        self,
        newest: PinRecord | None,
        root: CID,
        manifests: tuple[CID, ...],
        now: float,
        expires: int,
    ) -> PinRecord:
        return PinRecord(
            root=root,
            manifests=manifests,
            owner=self.owner,
            seq=newest.seq + 1 if newest is not None else 1,
            created=int(now),
            expires=expires,
        )


class Wish:
    """The record that an add offers to holders: the newest that names its manifest."""

    def __init__(
        self, records: PinRecords, manifest: Manifest, seconds: int, runtime: Runtime
    ) -> None:
        self._records = records
        self._manifest = manifest
        self._seconds = seconds
        self._runtime = runtime
        self.owner = records.owner
        self.offered: tuple[bytes, float] = (b"", 0.0)  # until `sign`

    @property
    def envelope(self) -> bytes:
        """The record, signed."""
        return self.offered[0]

    @property
    def expires(self) -> float:
        """When it ends, in unix seconds."""
        return self.offered[1]

    def sign(self) -> None:
        """In a worker: from here on there is one to offer."""
        signed = self._records.wanted(self._manifest, self._seconds)
        self.offered = signed.envelope, float(signed.record.expires)

    async def outdated(self, peer: PeerId, envelope: bytes) -> bool:
        """Whether there is another one to offer to a peer that refused `envelope` for a newer
        one.  Raises NetworkError, PeerError."""
        await self._records.learn(self._manifest.root, peer)
        await self._runtime.workers.run(self.sign)
        return self.envelope != envelope
