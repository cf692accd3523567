"""Adding: import, encode, place, upload, announce.

`Publisher` runs the phases and keeps the order that makes an add safe to kill at any moment:
blocks are durable before they are named, named before they are promised.  Adding the same
thing again finds what is stored and what holders acknowledged, and does the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from dstore.core.cid import CID
from dstore.core.envelope import SigningKey
from dstore.core.guarantee import Guarantee, describe, worst
from dstore.core.manifest import Code, Manifest, Segment
from dstore.core.peerid import PeerId
from dstore.core.pinrecord import PinRecord, open_pin_record
from dstore.core.placement import (
    Candidate,
    choose_code,
    group_key,
    lacking,
    less_room,
)
from dstore.errors import CallerError, InsufficientPeers, ProtocolViolation
from dstore.limits import ANNOUNCE_POLL_SECONDS, ANNOUNCE_SECONDS, RECORD_MANIFESTS_MAX
from dstore.network.routing import Routing
from dstore.network.streams import Network
from dstore.runtime import Runtime
from dstore.service.candidates import CandidateFinder
from dstore.service.encoding import Encoded, encode_root
from dstore.service.importing import Imported
from dstore.service.localadd import Import, Operation, add_locally
from dstore.service.progress import AddOptions, AddResult, GuaranteeStatus, Progress, Report
from dstore.service.reprovide import Reprovider
from dstore.service.restore import manifest_row
from dstore.service.stores import Stores
from dstore.service.upload import Offer, Placed, Uploader
from dstore.storage.rows import (
    PinRow,
    ReferenceKind,
    pin_key,
)


@dataclass(frozen=True)
class PublishOptions:
    """`pin_seconds`: how long holders are asked to keep what is added.  `own_domains` and
    `stores_slots`: this node as a candidate for slots of its own files."""

    pin_seconds: int
    own_domains: frozenset[str]
    stores_slots: bool


class Publisher:
    """Adds files for this node's owner."""

    def __init__(
        self,
        stores: Stores,
        network: Network,
        routing: Routing,
        candidates: CandidateFinder,
        uploader: Uploader,
        announcer: Reprovider,
        owner: SigningKey,
        runtime: Runtime,
        options: PublishOptions,
    ) -> None:
        self._stores = stores
        self._network = network
        self._routing = routing
        self._candidates = candidates
        self._uploader = uploader
        self._announcer = announcer
        self._owner = owner
        self._runtime = runtime
        self._options = options

    async def add_path(
        self, path: Path, options: AddOptions, report: Report, *, hidden: bool = False
    ) -> AddResult:
        """Add the file or directory at `path`.  Raises NotFoundError, CallerError,
        StorageFull, InsufficientPeers where `require_guarantee` cannot be met."""
        return await self._add(
            lambda importer: importer.add_path(path, hidden=hidden), options, report
        )

    async def add_stream(
        self, chunks: AsyncIterator[bytes], options: AddOptions, report: Report
    ) -> AddResult:
        """Add a file whose bytes come from `chunks`.  Raises as `add_path`."""
        return await self._add(lambda importer: importer.add_stream(chunks), options, report)

    async def _add(self, run: Import, options: AddOptions, report: Report) -> AddResult:
        if options.code is not None:
            _code(options.code)
        imported = await add_locally(self._stores, self._runtime, run, options, report)
        if options.local_only:
            await self._announce(imported.cid, report, confirm=False)
            return AddResult(imported.cid, imported.size, warnings=imported.warnings)
        return await self._protect(imported, options, report)

    # --- Protection ----------------------------------------------------------------------

    async def _protect(self, imported: Imported, options: AddOptions, report: Report) -> AddResult:
        root = imported.cid
        if root.is_identity or root.verify(b""):
            return AddResult(
                root,
                imported.size,
                protected=True,
                guarantee=GuaranteeStatus(0, 0, "the CID itself says all there is"),
                warnings=imported.warnings,
            )
        remote = await self._candidates.find(root.multihash)
        holding = await self._runtime.workers.run(self._holding, root)
        candidates, code = self._choose(remote, imported.size, holding, options)
        if not remote:
            if options.require_guarantee > 0:
                raise InsufficientPeers(
                    "no other storage node answered; the file is stored here only"
                )
            self._announcer.provide_soon(root)
            return AddResult(
                root,
                imported.size,
                guarantee=GuaranteeStatus(0, 0, "one copy, on this node"),
                warnings=(*imported.warnings, "no other storage node answered: stored here only"),
            )
        async with Operation("protect", self._stores, self._runtime) as save:
            encoded = await encode_root(
                root, code, self._stores.blocks, save, self._runtime.workers, report
            )
            await self._check_plan(encoded, candidates, options)
            record, new = await self._name(encoded, options)
            placed, reached = await self._place(encoded, record, candidates, report, confirm=new)
        protected = all(one.complete for one in placed)
        await self._finish_pin(encoded, record, protected, options)
        await self._announce(root, report, confirm=protected)
        if reached.peers < options.require_guarantee:
            raise InsufficientPeers(_too_little(root, placed, reached, options.require_guarantee))
        return AddResult(
            root,
            imported.size,
            manifest=encoded.manifest.cid,
            code=(code.k, code.m),
            protected=protected,
            guarantee=GuaranteeStatus(
                max(0, reached.peers), max(0, reached.domains), describe(reached)
            ),
            warnings=(*imported.warnings, *_warnings(placed, reached, code, protected)),
        )

    async def _check_plan(
        self, encoded: Encoded, candidates: Sequence[Candidate], options: AddOptions
    ) -> None:
        """Raises InsufficientPeers where not even the plan reaches the required guarantee:
        then nothing is placed anywhere."""
        if options.require_guarantee <= 0:
            return

        def plans() -> Iterator[Guarantee]:
            taken: Counter[PeerId] = Counter()
            for offer in self._offers(encoded.manifest, b"", candidates, taken):
                plan = offer.assign(self._leased(offer))
                taken.update(offer.bytes_of(plan.new))
                yield offer.guarantee(plan.holders)

        planned = await self._runtime.workers.run(lambda: _worst(plans()))
        if planned.peers < options.require_guarantee:
            raise InsufficientPeers(
                f"with the {len(candidates)} storage nodes that answered, {encoded.manifest.root} "
                f"{describe(planned)}; {options.require_guarantee} were required. It is stored "
                "here only"
            )

    def _choose(
        self,
        remote: Sequence[Candidate],
        size: int,
        holding: Collection[PeerId],
        options: AddOptions,
    ) -> tuple[list[Candidate], Code]:
        """The candidates and the code.  This node comes last among them: it takes a slot only
        where no other failure domain is free, and the copy that it keeps anyway is none."""
        own = Candidate(self._network.peer_id, self._options.own_domains, 1 << 62, load=1.0)
        candidates = [*remote, own] if self._options.stores_slots else list(remote)
        if options.code:
            return candidates, _code(options.code)
        return candidates, choose_code(candidates, size, holding)

    def _holding(self, root: CID) -> set[PeerId]:
        """In a worker: who has promised slots of the root, and so has room for them: adding
        again is to choose the code that was chosen before."""
        catalog, now = self._stores.catalog, self._runtime.clock.now()
        rows = catalog.manifests_of(root)[:RECORD_MANIFESTS_MAX]
        leases = (
            one for row in rows for cid in row.segments[:1] for one in catalog.placements(cid)
        )
        return {one.peer for one in leases if one.lease is not None and one.expires > now}

    async def _name(self, encoded: Encoded, options: AddOptions) -> tuple[bytes, bool]:
        """The catalog learns of the manifest, whose blocks are durable by now; then the pin
        record that names it, as `_pin_record`."""
        manifest = encoded.manifest

        def work() -> tuple[bytes, bool]:
            documents = [manifest.cid, *(ref.cid for ref in manifest.segments)]
            self._stores.catalog.reference(
                ReferenceKind.LOCAL_PIN,
                pin_key(manifest.root),
                [cid.multihash for cid in documents],
            )
            self._stores.catalog.put_manifest(manifest_row(manifest))
            return self._pin_record(encoded, options)

        return await self._runtime.workers.run(work)

    def _pin_record(self, encoded: Encoded, options: AddOptions) -> tuple[bytes, bool]:
        """In a worker: the envelope of the owner's wish, and whether holders may not know it yet.

        It is the one already signed where that names the manifest and has half of its time
        left, else a new one, durable before any holder sees it.  Manifests named before stay:
        what they protect is let go of by a later record, once this one is protected.
        """
        root, manifest = encoded.manifest.root, encoded.manifest.cid
        lifetime = options.pin_seconds or self._options.pin_seconds
        catalog = self._stores.catalog
        now = self._runtime.clock.now()
        known = catalog.pin_record(self._owner.public, root)
        named: tuple[CID, ...] = ()
        if known is not None and known.expires > now:
            try:
                named = open_pin_record(known.envelope, now).record.manifests
            except ProtocolViolation:
                named = ()
            if manifest in named and known.expires >= now + lifetime / 2:
                pin = catalog.get_pin(root)
                done = pin is not None and pin.mode == "protected" and pin.manifest == manifest
                return known.envelope, not (done and pin and pin.expires == known.expires)
        others = tuple(one for one in named if one != manifest)
        signed = PinRecord(
            root=root,
            manifests=(manifest, *others[: RECORD_MANIFESTS_MAX - 1]),
            owner=self._owner.public,
            seq=known.seq + 1 if known is not None else 1,
            created=int(now),
            expires=int(now) + lifetime,
        ).sign(self._owner)
        catalog.put_pin_record(
            signed.record.owner,
            root,
            signed.record.seq,
            float(signed.record.expires),
            signed.envelope,
        )
        return signed.envelope, True

    def _offers(
        self,
        manifest: Manifest,
        record: bytes,
        candidates: Sequence[Candidate],
        taken: Mapping[PeerId, int],
    ) -> Iterator[Offer]:
        """In a worker: what is offered of each segment, read from the store; segments that
        begin within the same 64 GiB of the root share a placement group, and so their holders.
        The room of the candidates is less by what segments before have `taken`."""
        offset = 0
        for ref in manifest.segments:
            block = self._stores.blocks.get(ref.cid)
            yield Offer(
                pin_record=record,
                owner=self._owner.public,
                manifest=manifest.cid,
                segment=Segment.decode(block),
                documents={manifest.cid: manifest.block, ref.cid: block},
                candidates=less_room(candidates, taken),
                group=group_key(manifest.root, offset),
            )
            offset += ref.bytes

    async def _place(
        self,
        encoded: Encoded,
        record: bytes,
        candidates: Sequence[Candidate],
        report: Report,
        *,
        confirm: bool,
    ) -> tuple[list[Placed], Guarantee]:
        """Every segment onto its holders, one segment after the other; what came of each, and
        the guarantee reached.  A peer that failed one is asked for the next only where the
        others are too few."""
        run, done = self._runtime.workers.run, 0

        def stored(size: int) -> None:
            nonlocal done
            # What a failed holder had is brought to another.
            done = min(done + size, encoded.fragment_bytes)
            report(Progress("upload", done, encoded.fragment_bytes))

        placed: list[Placed] = []
        reached: list[Guarantee] = []
        failed: set[PeerId] = set()
        taken: Counter[PeerId] = Counter()
        offers = (
            (offer, self._leased(offer))
            for offer in self._offers(encoded.manifest, record, candidates, taken)
        )
        while (prepared := await run(next, offers, None)) is not None:
            offer, held = prepared
            segment = offer.segment
            if not confirm:
                stored(sum(segment.slot_bytes(slot) for slot in held))
            one = await self._uploader.place(offer, held, stored, confirm=confirm, avoid=failed)
            failed.update(one.failures)
            taken.update(offer.bytes_of(one.brought))
            self._candidates.forget(one.failures)
            placed.append(one)
            reached.append(offer.guarantee(one.holders))
        return placed, _worst(reached)

    def _leased(self, offer: Offer) -> dict[int, tuple[PeerId, ...]]:
        """In a worker: slots with a lease that runs, at a peer that answered just now, as far
        as they are well spread there."""
        alive = {candidate.peer for candidate in offer.candidates}
        now = self._runtime.clock.now()
        held: dict[int, set[PeerId]] = {}
        for row in self._stores.catalog.placements(offer.segment.cid):
            if row.lease is not None and row.expires > now and row.peer in alive:
                held.setdefault(row.slot, set()).add(row.peer)
        return offer.worth_keeping(held)

    async def _finish_pin(
        self, encoded: Encoded, record: bytes, protected: bool, options: AddOptions
    ) -> None:
        manifest = encoded.manifest

        def work() -> None:
            catalog = self._stores.catalog
            known = catalog.get_pin(manifest.root)
            expires = open_pin_record(record, self._runtime.clock.now()).record.expires
            catalog.put_pin(
                PinRow(
                    manifest.root,
                    "protected" if protected else "local",
                    options.name or (known.name if known else None),
                    known.created if known else self._runtime.clock.now(),
                    float(expires),
                    manifest.code.k,
                    manifest.code.m,
                    manifest.cid,
                )
            )

        await self._runtime.workers.run(work)

    async def _announce(self, root: CID, report: Report, *, confirm: bool) -> None:
        """Have the DHT told that this node has the root, and wait a moment until it knows;
        where holders have it too, until one of them can be found.  What takes longer goes on
        behind the add's back."""
        report(Progress("announce", 0))
        if not self._network.connected():
            # Nobody to tell yet: waiting would only make a lonely node's adds slow.
            self._announcer.provide_soon(root)
            return
        with trio.move_on_after(ANNOUNCE_SECONDS):
            await self._announcer.announce(root)
            while confirm:
                search = self._routing.find_providers(root.multihash, count=1)
                try:
                    async for _ in search:
                        confirm = False
                finally:
                    search.close()
                if confirm:
                    await trio.sleep(ANNOUNCE_POLL_SECONDS)


def _worst(guarantees: Iterable[Guarantee]) -> Guarantee:
    return worst(guarantees) or Guarantee(0, 0)


def _code(pair: tuple[int, int]) -> Code:
    try:
        return Code(*pair)
    except ValueError as error:
        raise CallerError(str(error)) from error


def _too_little(
    root: CID, placed: Sequence[Placed], reached: Guarantee, required_peers: int
) -> str:
    if reached.peers < 0:
        what = f"{root} is readable on this node only: too few slots found a holder"
    else:
        what = f"{root} {describe(reached)}; {required_peers} were required"
    advice = "what was placed stays: add it again when more storage nodes are there"
    return "; ".join([what, *_passed_over(placed), advice])


def _passed_over(placed: Sequence[Placed]) -> list[str]:
    failures = {str(peer): why for one in placed for peer, why in one.failures.items()}
    return [
        f"passed over: {why if peer in why else f'{peer}: {why}'}" for peer, why in failures.items()
    ]


def _warnings(
    placed: Sequence[Placed], reached: Guarantee, code: Code, protected: bool
) -> list[str]:
    warnings = _passed_over(placed)
    if not protected:
        missing = sum(len(lacking(one.assignment, one.holders)) for one in placed)
        warnings.append(
            f"not protected: {missing} slots found no holder, the file is here all the same; add "
            "it again when those passed over are well or more storage nodes are there"
        )
    elif reached.peers < 1:
        warnings.append(
            "the loss of a single peer may make the file unreadable: more storage nodes are needed"
        )
    elif min(reached.peers, reached.domains) < code.m:
        where = "" if reached.peers < code.m else ", in failure domains of their own"
        warnings.append(
            f"{describe(reached)}; code {code.k}+{code.m} can do more: add again when more storage "
            f"nodes are there{where}"
        )
    return warnings
