"""Which peer holds which slot: failure domains, assignment, choice of the code.

Pure functions of what the caller knows of the peers; who the candidates are, and moving the
bytes, is the services' business.  What may be lost then is in `guarantee.py`, health over
time in `health.py`.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from dstore.core.cid import CID
from dstore.core.manifest import Code, Segment
from dstore.core.peerid import PeerId
from dstore.limits import MIB, PLACEMENT_GROUP_BYTES, SCORE_MIN, SEGMENT_BYTES_MAX

UNVERIFIED: Final = "unverified"
"""The one domain of all peers of which neither label nor address is known."""

_PLACEMENT_TAG: Final = b"dstore placement"
_GROUP_TAG: Final = b"dstore placement group"

# Failure domains → the cheapest code that survives any two of them (from four on) and leaves
# a domain free for repairs (from five on); the largest row not above the count applies.
_CODES: Final = (
    (0, Code(1, 1)),
    (3, Code(2, 1)),
    (4, Code(2, 2)),
    (6, Code(3, 2)),
    (7, Code(4, 2)),
    (10, Code(6, 3)),
    (12, Code(7, 4)),
    (24, Code(14, 8)),
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A peer that could hold slots, or holds some already.

    `domains` is what `domains_of` says, `score` its reputation from 0 to 1, and `load` the
    share of its work that is taken: at 1 and above it is used only where nothing else is as
    well spread.
    """

    peer: PeerId
    domains: frozenset[str]
    free_bytes: int
    score: float = 1.0
    load: float = 0.0


@dataclass(frozen=True, slots=True)
class SlotNeed:
    """A slot and the bytes of its real fragments; 0 where no stripe has one."""

    slot: int
    bytes: int


@dataclass(frozen=True)
class Assignment:
    """Who is to hold each slot that has real fragments.

    `holders` has the peers that hold it already first, then those of `new`, to which it is
    yet to be brought.  A slot for which nobody could be found is there with fewer holders
    than `copies`, or with none.
    """

    holders: Mapping[int, tuple[PeerId, ...]]
    new: Mapping[int, tuple[PeerId, ...]]
    copies: int = 1

    @property
    def unplaced(self) -> tuple[int, ...]:
        """Slots that found fewer holders than `copies`."""
        return tuple(slot for slot, peers in self.holders.items() if len(peers) < self.copies)


# --- Failure domains -------------------------------------------------------------------


def domains_of(addresses: Iterable[str], label: str | None = None) -> frozenset[str]:
    """The domain strings of a peer that was reached at `addresses` (multiaddrs in text) and
    whose operator gave it `label`.

    Public addresses count as their /24 or /48 and, where there are any, alone: everybody has
    the same private address on some bridge.  Else private addresses and host names count as
    themselves, so that the machines of one house stay apart.  Loopback counts where nothing
    else is known: all such peers are processes of one machine, one domain, unless they have
    labels, which then count alone.  That is how a development network on one machine plays
    many; nowhere else does a label split anything.
    """
    public: set[str] = set()
    private: set[str] = set()
    loopback = False
    for address in addresses:
        parts = address.split("/")
        # A circuit's address is the relay's, not the peer's.
        if len(parts) < 3 or parts[0] or "p2p-circuit" in parts:
            continue
        if parts[1] in ("dns", "dns4", "dns6", "dnsaddr"):
            private.add(f"addr:{parts[2].lower().rstrip('.')}")
            continue
        ip = ip_of(parts[1], parts[2])
        if ip is None or ip.is_unspecified or ip.is_multicast:
            continue
        if ip.is_loopback:
            loopback = True
        elif ip.is_global:
            bits = 24 if ip.version == 4 else 48
            public.add(f"net:{ipaddress.ip_network((ip, bits), strict=False)}")
        else:
            private.add(f"addr:{ip}")
    found = public or private
    if label:
        found = found | {f"label:{label}"}
    elif not found and loopback:
        found = {"addr:loopback"}
    return frozenset(found)


def ip_of(protocol: str, text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address in a part of a multiaddr; IPv4 mapped into IPv6 is IPv4.  None where the
    part is something else."""
    if protocol not in ("ip4", "ip6"):
        return None
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    return ip


def components(domains: Mapping[PeerId, Collection[str]]) -> dict[PeerId, str]:
    """Each peer's failure domain: peers that share a string, directly or through others, are
    in one.  It is named after one of its strings, a label where there is one."""
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    def rank(name: str) -> tuple[bool, str]:
        return not name.startswith("label:"), name

    for names in domains.values():
        for name in names or (UNVERIFIED,):
            parent.setdefault(name, name)
        first, *others = (find(name) for name in names or (UNVERIFIED,))
        for other in others:
            low, high = sorted((first, find(other)), key=rank)
            parent[high] = first = low
    return {
        peer: find(next(iter(names))) if names else UNVERIFIED for peer, names in domains.items()
    }


def domain_components(candidates: Iterable[Candidate]) -> dict[PeerId, str]:
    """`components` of the candidates."""
    return components({candidate.peer: candidate.domains for candidate in candidates})


def less_room(candidates: Iterable[Candidate], taken: Mapping[PeerId, int]) -> list[Candidate]:
    """The candidates with so many bytes less free than they said: what was brought to them, or
    is on its way, since they said it."""
    return [
        replace(one, free_bytes=one.free_bytes - taken[one.peer]) if one.peer in taken else one
        for one in candidates
    ]


def choose_code(
    candidates: Collection[Candidate], data_bytes: int, holding: Collection[PeerId] = ()
) -> Code:
    """The code for so much data on these candidates: by the failure domains in which somebody
    has room for a slot of its largest segment, or is of `holding` and needs none.  Below three
    domains it is two copies, which survive one loss at most: the caller warns."""
    domain_of = domain_components(candidates)
    segment_bytes = min(data_bytes, SEGMENT_BYTES_MAX)

    def domains(slot_bytes: int) -> int:
        able = (c.peer for c in candidates if c.peer in holding or c.free_bytes >= slot_bytes)
        return len({domain_of[peer] for peer in able})

    # A slot of a small file is a whole block.
    return next(
        code
        for least, code in reversed(_CODES)
        if domains(max(segment_bytes // code.k, min(segment_bytes, MIB))) >= least
    )


# --- Assignment ------------------------------------------------------------------------


def group_key(root: CID, offset_bytes: int) -> bytes:
    """What segments of one root share that start within the same 64 GiB of it; passed to
    `assign`, it gives them the same holders."""
    span = offset_bytes // PLACEMENT_GROUP_BYTES
    return _digest(_GROUP_TAG, root.multihash, span.to_bytes(8, "big"))


def needs_of(segment: Segment) -> tuple[SlotNeed, ...]:
    """Every slot of the segment with its bytes."""
    return tuple(SlotNeed(slot, segment.slot_bytes(slot)) for slot in range(segment.n))


def assign(
    segment: CID,
    slots: Sequence[SlotNeed],
    candidates: Collection[Candidate],
    code: Code,
    placed: Mapping[int, Collection[PeerId]] | None = None,
    copies: int = 1,
    avoid: Collection[PeerId] = (),
    group: bytes | None = None,
    stored: Mapping[int, Collection[PeerId]] | None = None,
) -> Assignment:
    """Find holders for the slots that `placed` does not cover with `copies` peers yet.

    Slots are spread evenly over failure domains, then over peers; over peers first where no
    spread could survive the loss of a domain anyway.  Copies of one slot go to different
    domains where there are several.  Among equals the rendezvous hash of (group or segment,
    slot, peer) decides, so that a peer's coming or going moves few slots.  Peers of `avoid`,
    with a low score or too little space get nothing new; holders in `placed` that are not
    among the candidates count as one unverified domain.  Peers of `stored` have the bytes of
    the slot already: they need no space for it, and come first among equals.
    """
    key = group if group is not None else segment.multihash
    has = stored or {}
    spread = _Spread(key, candidates, code, frozenset(avoid))
    # What is left for last goes to who is loaded, as the node that adds says of itself: of its
    # data slots that one has the bytes.  But nobody is to be guessed for slot 0 in vain.
    needed = sorted(
        (need for need in slots if need.bytes > 0),
        key=lambda need: (-need.bytes, 0 < need.slot < code.k, need.slot),
    )
    holders: dict[int, list[PeerId]] = {need.slot: [] for need in needed}
    for slot, peers in sorted((placed or {}).items()):
        for peer in sorted(set(peers)):
            holders.setdefault(slot, []).append(peer)
            spread.hold(peer)
    spread.choose_order(len(holders), {peer for peers in has.values() for peer in peers})
    new: dict[int, list[PeerId]] = {}
    for number in range(copies):
        for need in needed:
            if len(holders[need.slot]) > number:
                continue
            here = has.get(need.slot, ())
            found = spread.best(need, holders[need.slot], here)
            if found is not None:
                holders[need.slot].append(found)
                new.setdefault(need.slot, []).append(found)
                spread.hold(found, 0 if found in here else need.bytes)
    return Assignment(
        {slot: tuple(holders[slot]) for slot in sorted(holders)},
        {slot: tuple(new[slot]) for slot in sorted(new)},
        copies,
    )


def likely_first(root: CID, peers: Iterable[PeerId]) -> list[PeerId]:
    """The peers, the one first that `assign` takes before the others for slot 0 of the root's
    first segment, and so most likely the one that holds the root's first block."""
    key = group_key(root, 0)
    return sorted(peers, key=lambda peer: _preference(key, 0, peer))


def _preference(key: bytes, slot: int, peer: PeerId) -> bytes:
    """The rendezvous hash: of equals, the peer with the least one holds the slot."""
    return _digest(_PLACEMENT_TAG, key, slot.to_bytes(2, "big"), peer.binary)


class _Spread:
    """The counts that one assignment works with."""

    def __init__(
        self, key: bytes, candidates: Collection[Candidate], code: Code, avoid: frozenset[PeerId]
    ) -> None:
        self._key = key
        self._per_domain_max = max(code.m, 1)
        self._domain_of = domain_components(candidates)
        self._eligible = [
            candidate
            for candidate in candidates
            if candidate.score >= SCORE_MIN and candidate.peer not in avoid
        ]
        self._free = {candidate.peer: candidate.free_bytes for candidate in self._eligible}
        self._in_peer: Counter[PeerId] = Counter()
        self._in_domain: Counter[str] = Counter()
        self._domains_first = True

    def domain(self, peer: PeerId) -> str:
        return self._domain_of.get(peer, UNVERIFIED)

    def choose_order(self, slots: int, storing: Collection[PeerId]) -> None:
        """Whether domains can be spread so that the loss of any one is survived."""
        usable = {
            self.domain(c.peer) for c in self._eligible if c.free_bytes > 0 or c.peer in storing
        }
        domains = usable | self._in_domain.keys()
        self._domains_first = len(domains) * self._per_domain_max >= slots

    def hold(self, peer: PeerId, taken_bytes: int = 0) -> None:
        self._in_peer[peer] += 1
        self._in_domain[self.domain(peer)] += 1
        if taken_bytes:
            self._free[peer] -= taken_bytes

    def best(
        self, need: SlotNeed, holders: Sequence[PeerId], stored: Collection[PeerId]
    ) -> PeerId | None:
        """The peer to hold one more copy of the slot, which those of `stored` have; None where
        nobody can."""
        taken = {self.domain(peer) for peer in holders}

        def burden(candidate: Candidate) -> tuple[int, int, int, int]:
            domain = self.domain(candidate.peer)
            counts = self._in_domain[domain], self._in_peer[candidate.peer]
            first, second = counts if self._domains_first else counts[::-1]
            return int(domain in taken), first, second, int(candidate.load >= 1)

        able = [
            (burden(candidate), candidate.peer)
            for candidate in self._eligible
            if (self._free[candidate.peer] >= need.bytes or candidate.peer in stored)
            and candidate.peer not in holders
        ]
        if not able:
            return None
        least = min(able)[0]
        return min(
            (peer for weight, peer in able if weight == least),
            key=lambda peer: (peer not in stored, _preference(self._key, need.slot, peer)),
        )


def lacking(assignment: Assignment, leased: Mapping[int, Collection[PeerId]]) -> tuple[int, ...]:
    """Slots that the assignment requires and that have too few of the leases `leased`.

    Any peer's lease counts, so that a substitute's is as good; a slot that found fewer
    holders than `copies` is content with those, but never with none.
    """
    return tuple(
        slot
        for slot, peers in assignment.holders.items()
        if len(set(leased.get(slot, ()))) < max(1, len(peers))
    )


def enough(assignment: Assignment, leased: Mapping[int, Collection[PeerId]]) -> bool:
    """Whether every slot that the assignment requires is leased: the segment is protected."""
    return not lacking(assignment, leased)


def _digest(*fields: bytes) -> bytes:
    """SHA-256 over the fields, each behind its length in four bytes."""
    return hashlib.sha256(b"".join(len(f).to_bytes(4, "big") + f for f in fields)).digest()
