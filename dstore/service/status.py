"""How a root is doing: who holds which slot right now, and what may still be lost.

Holders are asked, not believed from memory: a slot is live when its holder answered just
now that it has it whole.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from dstore.core import dagpb
from dstore.core.cid import CID, DAG_PB
from dstore.core.guarantee import Guarantee, describe, guarantee, shapes_of, worst
from dstore.core.health import SegmentState, SlotState, segment_state, worst_state
from dstore.core.manifest import Manifest, Segment
from dstore.core.peerid import PeerId
from dstore.core.placement import components
from dstore.errors import DataError, NotFoundError
from dstore.limits import FIND_RECORDS_MAX
from dstore.network.streams import Network
from dstore.runtime import Runtime
from dstore.service.candidates import CandidateFinder, peer_domains
from dstore.service.decoding import Holders
from dstore.service.holdings import Holdings
from dstore.service.progress import GuaranteeStatus, RootStatus, SegmentStatus, SlotStatus
from dstore.service.session import RootSession
from dstore.service.stores import Stores
from dstore.storage.rows import PinRow


class StatusReader:
    """Looks at the health of roots."""

    def __init__(
        self,
        network: Network,
        holdings: Holdings,
        candidates: CandidateFinder,
        stores: Stores,
        runtime: Runtime,
        own_domains: frozenset[str],
    ) -> None:
        self._network = network
        self._holdings = holdings
        self._candidates = candidates
        self._stores = stores
        self._runtime = runtime
        self._own_domains = own_domains

    async def status(self, session: RootSession) -> RootStatus:
        """The root's health.  Raises NotFoundError where neither this node nor anybody that
        answers knows the root."""
        root = session.sources.root
        pin = await self._runtime.workers.run(self._stores.catalog.get_pin, root)
        manifests = await session.manifests()
        wanted = pin.manifest if pin is not None else None
        manifest = next((one for one in manifests if one.cid == wanted), None)
        if manifest is None and manifests:
            manifest = manifests[0]
        if manifest is None:
            return await self._unprotected(session, pin)
        expires = await self._expires(manifest, pin)
        segments: list[SegmentStatus] = []
        guarantees: list[Guarantee] = []
        silent: set[PeerId] = set()
        for ref in manifest.segments:
            segment, holders = await session.segments.load(manifest, ref)
            status, promise = await self._segment(segment, holders, silent, expires or 0.0)
            segments.append(status)
            guarantees.append(promise)
        reached = worst(guarantees) or Guarantee(0, 0)
        states: list[SegmentState] = [segment.state for segment in segments]
        return RootStatus(
            cid=root,
            manifest=manifest.cid,
            code=(manifest.code.k, manifest.code.m),
            state=worst_state(states),
            dag_bytes=manifest.bytes,
            guarantee=GuaranteeStatus(
                max(0, reached.peers), max(0, reached.domains), describe(reached)
            ),
            segments=tuple(segments),
            expires=expires,
        )

    async def _unprotected(self, session: RootSession, pin: PinRow | None) -> RootStatus:
        root = session.sources.root
        data = await session.block(root)
        if pin is None and not session.sources.peers:
            raise NotFoundError(f"{root} is not protected, as far as anybody who answers knows")
        return RootStatus(
            cid=root,
            manifest=None,
            code=None,
            state="local",
            dag_bytes=_dag_bytes(root, data),
            guarantee=GuaranteeStatus(0, 0, "one copy, not protected"),
        )

    async def _expires(self, manifest: Manifest, pin: PinRow | None) -> float | None:
        if pin is not None and pin.expires is not None:
            return pin.expires
        named = self._stores.catalog.pin_records_named
        rows = await self._runtime.workers.run(named, manifest.root, FIND_RECORDS_MAX)
        return max((row.expires for row in rows), default=None)

    async def _segment(
        self, segment: Segment, holders: Holders, silent: set[PeerId], wanted_until: float
    ) -> tuple[SegmentStatus, Guarantee]:
        """One segment: its slots as their holders confirm them now.  Peers of `silent` are
        not waited for again; those that do not answer join them.  The pin record ends at
        `wanted_until`, and with it every lease."""
        now = self._runtime.clock.now()
        asked = {peer for peers in holders.values() for peer in peers}
        live = await self._holdings.ask(segment.cid, asked, silent, wanted_until)
        placements = await self._runtime.workers.run(self._stores.catalog.placements, segment.cid)
        # Who answered, and not with the slot, has lost or dropped it, whatever was promised.
        answered = {self._network.peer_id, *asked} - silent
        promised = {
            row.slot for row in placements if row.expires > now and row.peer not in answered
        }
        shapes = shapes_of(segment)
        existing = {slot for shape in shapes for slot in shape.slots}
        slots: list[SlotStatus] = []
        states: dict[int, SlotState] = {}
        for slot in range(segment.n):
            peers = tuple(sorted(live.get(slot, ())))
            state = _slot_state(slot in existing, bool(peers), slot in promised)
            slots.append(SlotStatus(slot, peers, state))
            if state in ("live", "away"):
                states[slot] = "live" if state == "live" else "away"
        status = SegmentStatus(
            segment.cid,
            segment_state(segment.code, shapes, states),
            segment.data_bytes,
            tuple(slots),
        )
        holding = {peer for peers in live.values() for peer in peers}
        domains = components(await self._domains(holding))
        return status, guarantee(shapes, live, domains)

    async def _domains(self, peers: Collection[PeerId]) -> dict[PeerId, frozenset[str]]:
        """The failure domains of the peers; those never met are asked first."""

        def strangers() -> list[PeerId]:
            rows = {peer: self._stores.catalog.peer(peer) for peer in peers}
            return [peer for peer, row in rows.items() if row is None or row.role is None]

        unknown = await self._runtime.workers.run(strangers)
        await self._candidates.introduce(peer for peer in unknown if peer != self._network.peer_id)

        def work() -> dict[PeerId, frozenset[str]]:
            found: dict[PeerId, frozenset[str]] = {}
            for peer in peers:
                if peer == self._network.peer_id:
                    found[peer] = self._own_domains
                    continue
                row, reached = self._stores.catalog.peer(peer), self._network.reached_at(peer)
                known = row.domains if row else ()  # where it was when it last answered
                found[peer] = peer_domains([reached], known) if reached else frozenset(known)
            return found

        return await self._runtime.workers.run(work)


def _dag_bytes(root: CID, data: bytes) -> int:
    """Bytes of the root's block and, as its links say, of those below."""
    if root.codec != DAG_PB:
        return len(data)
    try:
        links = dagpb.decode(data).links
    except DataError:
        return len(data)
    return len(data) + sum(link.tsize or 0 for link in links)


def _slot_state(
    exists: bool, answered: bool, promised: bool
) -> Literal["live", "away", "missing", "empty"]:
    if not exists:
        return "empty"
    if answered:
        return "live"
    return "away" if promised else "missing"
