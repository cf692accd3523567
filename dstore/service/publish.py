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
from dstore.core.guarantee import Guarantee, describe, worst
from dstore.core.manifest import Code, Manifest, Segment
from dstore.core.peerid import PeerId
from dstore.core.placement import Candidate, choose_code, group_key, less_room
from dstore.errors import CallerError, CorruptStore, DataError, InsufficientPeers, NotFoundError
from dstore.limits import (
    ANNOUNCE_POLL_SECONDS,
    ANNOUNCE_SECONDS,
    HELLO_KEPT_SECONDS,
    RECORD_MANIFESTS_MAX,
)
from dstore.network.routing import Routing
from dstore.network.streams import Network
from dstore.runtime import Runtime
from dstore.service.addedfiles import AddedFiles
from dstore.service.candidates import CandidateFinder
from dstore.service.encoding import Encoded, encode_root
from dstore.service.holdings import Holdings
from dstore.service.importing import Imported
from dstore.service.localadd import Import, Operation, add_locally
from dstore.service.offer import Offer
from dstore.service.outcome import Outcome, Standing, standing, worst_standing
from dstore.service.pinrecords import PinRecords, Wish
from dstore.service.progress import AddOptions, AddResult, GuaranteeStatus, Progress, Report
from dstore.service.reprovide import Reprovider
from dstore.service.restore import manifest_row
from dstore.service.rootturns import RootTurns, let_go_of
from dstore.service.stores import Stores
from dstore.service.upload import Placed, Uploader
from dstore.storage.blockstore import GetBlock
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
        holdings: Holdings,
        uploader: Uploader,
        announcer: Reprovider,
        records: PinRecords,
        turns: RootTurns,
        runtime: Runtime,
        options: PublishOptions,
    ) -> None:
        self._stores = stores
        self._network = network
        self._routing = routing
        self._candidates = candidates
        self._holdings = holdings
        self._uploader = uploader
        self._announcer = announcer
        self._records = records
        self._turns = turns
        self._runtime = runtime
        self._options = options

    async def add_path(
        self, path: Path, options: AddOptions, report: Report, *, hidden: bool = False
    ) -> AddResult:
        """Add the file or directory at `path`.  Raises NotFoundError, CallerError,
        StorageFull, InsufficientPeers where `require_guarantee` cannot be met."""
        return await self._add(
            lambda importer: importer.add_path(path, hidden=hidden),
            options,
            report,
            from_files=True,
        )

    async def add_stream(
        self, chunks: AsyncIterator[bytes], options: AddOptions, report: Report
    ) -> AddResult:
        """Add a file whose bytes come from `chunks`.  Raises as `add_path`."""
        return await self._add(
            lambda importer: importer.add_stream(chunks), options, report, from_files=False
        )

    async def _add(
        self, run: Import, options: AddOptions, report: Report, *, from_files: bool
    ) -> AddResult:
        if options.code is not None:
            _code(options.code)
        files = AddedFiles(self._stores.blocks)
        imported = await add_locally(
            self._stores,
            self._turns,
            self._runtime,
            run,
            options,
            report,
            note=files.note,
            # What is to be protected is read three times more.
            read_soon=not options.local_only and not (from_files and files.usable),
        )
        if options.local_only:
            await self._announce(imported.cid, report, confirm=False)
            return AddResult(imported.cid, imported.size, warnings=imported.warnings)
        return await self._protect(imported, files.get, options, report)

    # --- Protection ----------------------------------------------------------------------

    async def _protect(
        self, imported: Imported, read: GetBlock, options: AddOptions, report: Report
    ) -> AddResult:
        root = imported.cid
        if root.is_identity or root.verify(b""):
            says_all = GuaranteeStatus(0, 0, "the CID itself says all there is")
            return AddResult(
                root, imported.size, protected=True, guarantee=says_all, warnings=imported.warnings
            )
        remote = await self._candidates.find(root.multihash)
        asked_at = trio.current_time()
        # They need no room for their slots: adding again is to choose the code chosen before.
        holding = await self._runtime.workers.run(
            self._stores.catalog.peers_promising, root, RECORD_MANIFESTS_MAX
        )
        takers = [one for one in remote if one.free_bytes > 0 or one.peer in holding]
        if not takers:
            nobody = "no other storage node " + ("has room" if remote else "answered")
            if options.require_guarantee > 0:
                raise InsufficientPeers(f"{nobody}; the file is stored here only")
            self._announcer.provide_soon(root)
            return AddResult(
                root,
                imported.size,
                guarantee=GuaranteeStatus(0, 0, "one copy, on this node"),
                warnings=(*imported.warnings, f"{nobody}: stored here only"),
            )
        code = self._choose(takers, imported.size, holding, options)
        async with (
            self._turns.protecting(root),
            Operation("protect", self._stores, self._runtime) as save,
        ):
            encoded = await encode_root(
                root, code, self._stores.blocks, read, save, self._runtime.workers, report
            )
            if trio.current_time() - asked_at > HELLO_KEPT_SECONDS:  # some may have left since
                remote = await self._candidates.find(root.multihash)
            candidates = self._with_own(remote)
            seconds = options.pin_seconds or self._options.pin_seconds
            wish = Wish(self._records, encoded.manifest, seconds, self._runtime)
            await self._check_plan(encoded, wish, candidates, options)
            new = await self._name(encoded, wish)
            record, silent = wish.envelope, set[PeerId]()
            outcome = await self._place(encoded, wish, candidates, silent, report, confirm=new)
            if wish.envelope != record:  # another device had signed one: now all are to know this
                outcome = await self._place(encoded, wish, candidates, silent, report, confirm=True)
            manifest, reached = encoded.manifest, outcome.standing.reached
            protected, warnings = outcome.protected, outcome.warnings()
            before = await self._before(encoded, wish, outcome, candidates, silent, options)
            if before is None:
                await self._finish_pin(encoded, wish, protected, options)
            else:
                (manifest, reached), protected = before, True
                warnings = outcome.warnings_kept(manifest.code, reached)
        await self._announce(root, report, confirm=protected)
        if reached.peers < options.require_guarantee:
            raise InsufficientPeers(outcome.too_little(root, reached, options.require_guarantee))
        return AddResult(
            root,
            imported.size,
            manifest=manifest.cid,
            code=(manifest.code.k, manifest.code.m),
            protected=protected,
            guarantee=GuaranteeStatus(
                max(0, reached.peers), max(0, reached.domains), describe(reached)
            ),
            warnings=(*imported.warnings, *warnings),
        )

    async def _check_plan(
        self,
        encoded: Encoded,
        wish: Wish,
        candidates: Sequence[Candidate],
        options: AddOptions,
    ) -> None:
        """Raises InsufficientPeers where not even the plan reaches the required guarantee:
        then nothing is placed anywhere."""
        if options.require_guarantee <= 0:
            return

        def plans() -> Iterator[Guarantee]:
            taken: Counter[PeerId] = Counter()
            for offer in self._offers(encoded.manifest, wish, candidates, taken):
                plan = offer.assign(offer.worth_keeping())
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
        takers: Sequence[Candidate],
        size: int,
        holding: Collection[PeerId],
        options: AddOptions,
    ) -> Code:
        if options.code:
            return _code(options.code)
        return choose_code(self._with_own(takers), size, holding)

    def _with_own(self, remote: Sequence[Candidate]) -> list[Candidate]:
        """The candidates.  This node comes last among them: it takes a slot only where no other
        failure domain is free, and the copy that it keeps anyway is none."""
        if not self._options.stores_slots:
            return list(remote)
        own = Candidate(self._network.peer_id, self._options.own_domains, 1 << 62, load=1.0)
        return [*remote, own]

    async def _name(self, encoded: Encoded, wish: Wish) -> bool:
        """The catalog learns of the manifest, whose blocks are durable by now; then the pin
        record that names it.  Returns whether holders may not know that one yet.  Raises
        CallerError where the root was let go of."""
        manifest = encoded.manifest

        def work() -> bool:
            catalog, root = self._stores.catalog, manifest.root
            pin = catalog.get_pin(root)
            if pin is None:
                raise let_go_of(root)
            documents = [manifest.cid, *(ref.cid for ref in manifest.segments)]
            catalog.reference(
                ReferenceKind.LOCAL_PIN, pin_key(root), [cid.multihash for cid in documents]
            )
            catalog.put_manifest(manifest_row(manifest))
            before = catalog.pin_record(wish.owner, root)
            wish.sign()
            told = (pin.mode, pin.manifest, pin.expires)
            return (
                before is None
                or before.envelope != wish.envelope
                or told != ("protected", manifest.cid, wish.expires)
            )

        return await self._runtime.workers.run(work)

    def _offers(
        self,
        manifest: Manifest,
        wish: Wish,
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
                wish=wish,
                manifest=manifest.cid,
                segment=Segment.decode(block),
                documents={manifest.cid: manifest.block, ref.cid: block},
                candidates=less_room(candidates, taken),
                group=group_key(manifest.root, offset),
                stored=self._leased(ref.cid, {candidate.peer for candidate in candidates}),
            )
            offset += ref.bytes

    async def _place(
        self,
        encoded: Encoded,
        wish: Wish,
        candidates: Sequence[Candidate],
        silent: set[PeerId],
        report: Report,
        *,
        confirm: bool,
    ) -> Outcome:
        """Every segment onto its holders, one segment after the other.  A peer that failed one
        is asked for the next only where the others are too few.  Those that have a slot
        already are offered it again with `confirm`, and else asked whether they have it; who
        does not answer joins `silent`."""
        run, own, done = self._runtime.workers.run, self._network.peer_id, 0

        def stored(size: int) -> None:
            nonlocal done
            # What a failed holder had is brought to another.
            done = min(done + size, encoded.fragment_bytes)
            report(Progress("upload", done, encoded.fragment_bytes))

        placed: list[Placed] = []
        standings: list[Standing] = []
        failed: set[PeerId] = set()
        taken: Counter[PeerId] = Counter()
        offers = self._offers(encoded.manifest, wish, candidates, taken)
        while (offer := await run(next, offers, None)) is not None:
            if not confirm:
                offer = await self._holdings.confirmed(offer, silent, wish.expires)
                failed |= silent
            held = await run(offer.worth_keeping)
            if not confirm:
                stored(sum(offer.segment.slot_bytes(slot) for slot in held))
            one = await self._uploader.place(
                offer, encoded.read, held, stored, confirm=confirm, avoid=failed
            )
            one.failures.update((peer, "did not answer") for peer in silent - one.failures.keys())
            failed.update(one.failures)
            taken.update(offer.bytes_of(one.brought))
            self._candidates.forget(one.failures)
            placed.append(one)
            standings.append(standing(offer, one.holders, own))
        return Outcome(encoded.manifest.code, placed, worst_standing(standings))

    def _leased(self, segment: CID, alive: Collection[PeerId]) -> dict[int, set[PeerId]]:
        """In a worker: slots leased to this owner once, at peers of `alive`.  Whether they have
        them still is for them to say, and for how long: holders extend their leases."""
        held: dict[int, set[PeerId]] = {}
        for row in self._stores.catalog.placements(segment):
            if row.lease is not None and row.peer in alive:
                held.setdefault(row.slot, set()).add(row.peer)
        return held

    async def _before(
        self,
        encoded: Encoded,
        wish: Wish,
        outcome: Outcome,
        candidates: Sequence[Candidate],
        silent: set[PeerId],
        options: AddOptions,
    ) -> tuple[Manifest, Guarantee] | None:
        """The manifest of another code that the pin names, and what may be lost under it, where
        that protects the root still, and better than what this add came to."""
        run = self._runtime.workers.run
        pin = await run(self._stores.catalog.get_pin, encoded.manifest.root)
        if pin is None or pin.mode != "protected" or pin.manifest in (None, encoded.manifest.cid):
            return None
        if outcome.protected and options.code:
            return None  # as it was asked for
        try:
            block = await run(self._stores.blocks.get, pin.manifest)
            manifest = await run(Manifest.decode, block)
        except (NotFoundError, CorruptStore, DataError):
            return None
        standings: list[Standing] = []
        offers = self._offers(manifest, wish, candidates, {})
        while (offer := await run(next, offers, None)) is not None:
            offer = await self._holdings.confirmed(offer, silent, pin.expires or 0.0)
            standings.append(standing(offer, offer.stored, self._network.peer_id))
        before = worst_standing(standings)
        if not before.survives_this_node:
            return None
        if outcome.protected and outcome.standing.reached.peers >= before.reached.peers:
            return None
        return manifest, before.reached

    async def _finish_pin(
        self, encoded: Encoded, wish: Wish, protected: bool, options: AddOptions
    ) -> None:
        manifest = encoded.manifest

        def finish(known: PinRow | None) -> PinRow:
            if known is None:
                raise let_go_of(manifest.root)
            return PinRow(
                manifest.root,
                "protected" if protected else "local",
                options.name or known.name,
                known.created,
                wish.expires,
                manifest.code.k,
                manifest.code.m,
                manifest.cid,
            )

        await self._runtime.workers.run(self._stores.catalog.change_pin, manifest.root, finish)

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
