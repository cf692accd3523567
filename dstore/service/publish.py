"""Adding: import, encode, place, upload, announce.

`Publisher` runs the phases and keeps the order that makes an add safe to kill at any moment:
blocks are durable before they are named, named before they are promised.  Adding the same
thing again finds what is stored and what holders acknowledged, and does the rest.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from dstore.core.cid import CID
from dstore.core.envelope import SigningKey
from dstore.core.manifest import Code, Segment
from dstore.core.peerid import PeerId
from dstore.core.pinrecord import PinRecord, open_pin_record
from dstore.core.placement import (
    Candidate,
    Guarantee,
    choose_code,
    describe,
    domain_components,
    group_key,
    guarantee,
    shapes_of,
    worst,
)
from dstore.errors import CallerError, InsufficientPeers, ProtocolViolation
from dstore.limits import ANNOUNCE_SECONDS
from dstore.network.routing import Routing
from dstore.network.streams import Network
from dstore.runtime import Runtime
from dstore.service.candidates import CandidateFinder
from dstore.service.encoding import Encoded, encode_root
from dstore.service.importing import Imported
from dstore.service.localadd import Import, Operation, add_locally
from dstore.service.progress import AddOptions, AddResult, GuaranteeStatus, Progress, Report
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
        owner: SigningKey,
        runtime: Runtime,
        options: PublishOptions,
    ) -> None:
        self._stores = stores
        self._network = network
        self._routing = routing
        self._candidates = candidates
        self._uploader = uploader
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
        remote = await self._candidates.find(root.multihash)
        candidates, code = self._choose(remote, options)
        if not remote or root.is_identity:
            if options.require_guarantee > 0 and not root.is_identity:
                raise InsufficientPeers(
                    "no other storage node answered; the file is stored here only"
                )
            reason = "" if root.is_identity else "no other storage node answered: stored here only"
            return AddResult(
                root,
                imported.size,
                guarantee=GuaranteeStatus(0, 0, "one copy, on this node"),
                warnings=tuple(filter(None, (*imported.warnings, reason))),
            )
        async with Operation("protect", self._stores, self._runtime) as save:
            encoded = await encode_root(
                root, code, self._stores.blocks, save, self._runtime.workers, report
            )
            await self._note_manifest(encoded)
            record = await self._pin_record(encoded, options)
            placed = await self._place(encoded, record, candidates, options, report)
        await self._runtime.workers.run(self._drop_parity, encoded)
        reached = self._guarantee(encoded, placed, candidates)
        protected = all(one.complete for one in placed)
        await self._finish_pin(encoded, record, protected, options)
        await self._announce(root, report, confirm=protected)
        warnings = [*imported.warnings, *_warnings(placed, reached, protected)]
        if reached.peers < options.require_guarantee:
            raise InsufficientPeers(
                f"{root} {describe(reached)}; {options.require_guarantee} were required"
            )
        return AddResult(
            root,
            imported.size,
            manifest=encoded.manifest.cid,
            code=(code.k, code.m),
            protected=protected,
            guarantee=GuaranteeStatus(
                max(0, reached.peers), max(0, reached.domains), describe(reached)
            ),
            warnings=tuple(warnings),
        )

    def _choose(
        self, remote: Sequence[Candidate], options: AddOptions
    ) -> tuple[list[Candidate], Code]:
        """The candidates, this node among them only where the others are too few, and the
        code.  The copy that the adder keeps anyway is not counted as a slot."""
        candidates = list(remote)
        own = Candidate(self._network.peer_id, self._options.own_domains, 1 << 62, load=1.0)
        remote_domains = len(set(domain_components(remote).values()))
        with_own = len(set(domain_components([*remote, own]).values()))
        domains = with_own if self._options.stores_slots else remote_domains
        code = _code(options.code) if options.code else choose_code(domains)
        if self._options.stores_slots and remote_domains < code.n:
            candidates.append(own)
        return candidates, code

    async def _note_manifest(self, encoded: Encoded) -> None:
        """The catalog learns of the manifest, whose blocks are durable by now."""
        manifest = encoded.manifest

        def work() -> None:
            documents = [manifest.cid, *(segment.cid for segment in encoded.segments)]
            self._stores.catalog.reference(
                ReferenceKind.LOCAL_PIN,
                pin_key(manifest.root),
                [cid.multihash for cid in documents],
            )
            self._stores.catalog.put_manifest(manifest_row(manifest))

        await self._runtime.workers.run(work)

    async def _pin_record(self, encoded: Encoded, options: AddOptions) -> bytes:
        """The envelope of the owner's wish: the one already signed where it says the same and
        has half of its time left, else a new one.  Durable before any holder sees it."""
        root, manifest = encoded.manifest.root, encoded.manifest.cid
        lifetime = options.pin_seconds or self._options.pin_seconds

        def work() -> bytes:
            catalog = self._stores.catalog
            now = self._runtime.clock.now()
            known = catalog.pin_record(self._owner.public, root)
            if known is not None and known.expires >= now + lifetime / 2:
                try:
                    record = open_pin_record(known.envelope, now).record
                except ProtocolViolation:
                    record = None
                if record is not None and record.manifests == (manifest,):
                    return known.envelope
            signed = PinRecord(
                root=root,
                manifests=(manifest,),
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
            return signed.envelope

        return await self._runtime.workers.run(work)

    async def _place(
        self,
        encoded: Encoded,
        record: bytes,
        candidates: Sequence[Candidate],
        options: AddOptions,
        report: Report,
    ) -> list[Placed]:
        """Every segment onto its holders, one segment after the other."""
        manifest = encoded.manifest
        total = sum(
            segment.slot_bytes(slot) for segment in encoded.segments for slot in range(segment.n)
        )
        done = 0

        def stored(size: int) -> None:
            nonlocal done
            done += size
            report(Progress("upload", done, total))

        placed: list[Placed] = []
        offset = 0
        for segment in encoded.segments:
            offer = Offer(
                record, manifest.cid, segment, candidates, group_key(manifest.root, offset)
            )
            held = await self._acknowledged(segment, candidates)
            stored(sum(segment.slot_bytes(slot) for slot in held))
            placed.append(await self._uploader.place(offer, held, stored))
            offset += segment.data_bytes
        return placed

    async def _acknowledged(
        self, segment: Segment, candidates: Sequence[Candidate]
    ) -> dict[int, set[PeerId]]:
        """Slots with a lease that runs, at a peer that answered just now."""
        alive = {candidate.peer for candidate in candidates}
        now = self._runtime.clock.now()
        rows = await self._runtime.workers.run(self._stores.catalog.placements, segment.cid)
        held: dict[int, set[PeerId]] = {}
        for row in rows:
            if row.lease is not None and row.expires > now and row.peer in alive:
                held.setdefault(row.slot, set()).add(row.peer)
        return held

    def _guarantee(
        self, encoded: Encoded, placed: Sequence[Placed], candidates: Sequence[Candidate]
    ) -> Guarantee:
        domain_of = domain_components(candidates)
        found = worst(
            guarantee(shapes_of(segment), one.holders, domain_of)
            for segment, one in zip(encoded.segments, placed, strict=True)
        )
        return found or Guarantee(0, 0)

    def _drop_parity(self, encoded: Encoded) -> None:
        """In a worker: parity that no slot of this node keeps was only here to be uploaded."""
        self._stores.catalog.sweep(self._stores.blocks, [cid.multihash for cid in encoded.parity])

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
        """Tell the DHT that this node has the root; where holders have it too, wait a moment
        until one of them can be found."""
        report(Progress("announce", 0))
        with trio.move_on_after(ANNOUNCE_SECONDS):
            await self._routing.provide(root.multihash)
            while confirm:
                async for _ in self._routing.find_providers(root.multihash, count=1):
                    confirm = False
                    break
                else:
                    await trio.sleep(0.1)


def _code(pair: tuple[int, int]) -> Code:
    try:
        return Code(*pair)
    except ValueError as error:
        raise CallerError(str(error)) from error


def _warnings(placed: Sequence[Placed], reached: Guarantee, protected: bool) -> list[str]:
    warnings: list[str] = []
    failures = {str(peer): why for one in placed for peer, why in one.failures.items()}
    warnings += [f"{peer} failed and was passed over: {why}" for peer, why in failures.items()]
    if not protected:
        missing = sum(len(one.assignment.unplaced) for one in placed)
        warnings.append(
            f"not protected: {missing} slots found no holder; add again when more storage "
            "nodes are there"
        )
    elif reached.peers < 1:
        warnings.append(
            "the loss of a single peer may make the file unreadable: more storage nodes are needed"
        )
    return warnings
