"""The owner's records: reused, superseded, ended, and learned from holders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from dstore.core import wire
from dstore.core.cid import CID
from dstore.core.peerid import PeerId
from dstore.core.pinrecord import open_pin_record
from dstore.limits import CLOCK_SKEW_SECONDS_MAX
from dstore.network.fragments_client import FragmentsClient
from dstore.service.pinrecords import PinRecords, Wish
from dstore.testing.cluster import node_key
from dstore.testing.single_holder import (
    DAY,
    START,
    SingleHolder,
    open_single_holder,
    protect,
)

PEER = node_key(5).peer_id
YEAR = 365 * DAY


@dataclass
class Tells:
    """The client: a peer that tells these records."""

    envelopes: tuple[bytes, ...] = ()
    asked: int = 0

    async def find_manifests(self, peer: PeerId, root: CID) -> wire.Manifests:
        self.asked += 1
        return wire.Manifests((), self.envelopes)


def records(here: SingleHolder, client: Tells | None = None) -> PinRecords:
    told = cast("FragmentsClient", client or Tells())
    return PinRecords(here.stores, here.network, told, here.owner, here.runtime)


async def test_a_record_is_signed_anew_when_half_of_its_time_is_over(tmp_path: Path) -> None:
    root = protect()
    async with open_single_holder(tmp_path) as here:
        mine = records(here)
        first = mine.wanted(root.manifest, int(YEAR))
        assert (first.record.seq, first.record.manifests) == (1, (root.manifest.cid,))
        here.clock.time = START + YEAR / 2
        assert mine.wanted(root.manifest, int(YEAR)) == first
        here.clock.time += 1
        assert mine.wanted(root.manifest, int(YEAR)).record.seq == 2


async def test_an_end_is_past_by_every_clock_and_signed_once(tmp_path: Path) -> None:
    root = protect()
    async with open_single_holder(tmp_path) as here:
        mine = records(here)
        assert mine.ended(root.root) is None
        mine.wanted(root.manifest, int(YEAR))
        end = mine.ended(root.root)
        assert end is not None
        assert end.record.expires == int(START) - CLOCK_SKEW_SECONDS_MAX
        # Who takes it at all takes it for an end.
        slow = START - CLOCK_SKEW_SECONDS_MAX
        assert open_pin_record(end.envelope, slow).record.expires <= slow
        assert mine.ended(root.root) == end
        assert mine.wanted(root.manifest, int(YEAR)).record.seq == 3


async def test_a_record_from_a_clock_that_was_ahead_is_not_offered(tmp_path: Path) -> None:
    root = protect()
    async with open_single_holder(tmp_path) as here:
        mine = records(here)
        here.clock.time = START + 10 * DAY
        mine.wanted(root.manifest, int(YEAR))
        here.clock.time = START
        again = mine.wanted(root.manifest, int(YEAR))
        assert (again.record.seq, again.record.created) == (2, int(START))
        here.clock.time = START - 10 * DAY
        end = mine.ended(root.root)
        assert end is not None
        assert (end.record.seq, end.record.created) == (3, int(START - 10 * DAY))


async def test_what_another_device_signed_is_learned_and_kept_beside(tmp_path: Path) -> None:
    root = protect()
    async with open_single_holder(tmp_path) as here:
        other = protect(2).manifest.cid
        stranger = node_key(7, "owner")
        tells = Tells(
            (
                root.record(stranger, seq=99),
                root.record(here.owner, seq=7)[:-1] + b"\0",
                b"no envelope",
                protect(3).record(here.owner, seq=50),
                root.record(here.owner, seq=6, manifests=[other]),
                root.record(here.owner, seq=5),
            )
        )
        wish = Wish(records(here, tells), root.manifest, int(YEAR), here.runtime)
        wish.sign()
        first = wish.envelope
        assert await wish.outdated(PEER, first)
        record = open_pin_record(wish.envelope, START).record
        assert (record.seq, record.manifests) == (7, (root.manifest.cid, other))
        assert wish.expires == record.expires
        # A peer that refuses for nothing is not offered the same again.
        assert not await wish.outdated(PEER, wish.envelope)
        assert here.stores.catalog.pin_record(stranger.public, root.root) is None
        assert here.stores.catalog.pin_record(here.owner.public, protect(3).root) is None


async def test_a_newer_record_that_will_do_is_offered_as_it_is(tmp_path: Path) -> None:
    root = protect()
    async with open_single_holder(tmp_path) as here:
        theirs = root.record(here.owner, seq=9)
        wish = Wish(records(here, Tells((theirs,))), root.manifest, int(YEAR), here.runtime)
        wish.sign()
        assert await wish.outdated(PEER, wish.envelope)
        assert wish.envelope == theirs


async def test_this_node_is_not_asked_over_the_network(tmp_path: Path) -> None:
    """A slot of its own is refused where another device brought a newer record here."""
    root = protect()
    async with open_single_holder(tmp_path) as here:
        tells = Tells()
        wish = Wish(records(here, tells), root.manifest, int(YEAR), here.runtime)
        wish.sign()
        brought = root.record(here.owner, seq=4, manifests=[protect(2).manifest.cid])
        here.stores.catalog.put_pin_record(here.owner.public, root.root, 4, START + YEAR, brought)
        assert await wish.outdated(here.network.peer_id, wish.envelope)
        assert open_pin_record(wish.envelope, START).record.seq == 5
        assert tells.asked == 0
