"""What may be lost of a segment once its slots have these holders: peers, failure domains.

Pure functions of who holds which slot; who is to hold it is decided in `placement.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from dstore.core.manifest import Code, Segment
from dstore.core.peerid import PeerId
from dstore.core.placement import UNVERIFIED
from dstore.limits import GUARANTEE_STEPS_MAX


@dataclass(frozen=True, slots=True)
class StripeShape:
    """What readability of a stripe depends on: its data blocks and the slots that exist."""

    data_count: int
    slots: frozenset[int]


@dataclass(frozen=True, slots=True)
class Guarantee:
    """The largest number of peers, and of failure domains, of which any may be lost while
    every stripe stays readable; -1 where one is not readable now.

    Where `exact` is false the numbers are safe, but more may hold: several copies of slots
    on overlapping peers make the question a hitting-set problem, searched to a fixed depth.
    """

    peers: int
    domains: int
    exact: bool = True


def shape(data_count: int, code: Code) -> StripeShape:
    """The shape of a stripe with that many data blocks under the code."""
    return StripeShape(data_count, frozenset(range(data_count)) | frozenset(range(code.k, code.n)))


def shapes_of(segment: Segment) -> frozenset[StripeShape]:
    """The shapes that occur in the segment: few, however many its stripes."""
    counts = {len(stripe.data) for stripe in segment.stripes}
    return frozenset(shape(count, segment.code) for count in counts)


def guarantee(
    shapes: Iterable[StripeShape],
    holders: Mapping[int, Collection[PeerId]],
    domain_of: Mapping[PeerId, str],
) -> Guarantee:
    """What may be lost of the segment whose slots have these live `holders`.

    `domain_of` is what `components` gives; peers it does not know are one domain.  Without
    any shape nothing depends on anybody, and all holders may be lost.
    """
    peers = sorted({peer for held in holders.values() for peer in held})
    domains = sorted({domain_of.get(peer, UNVERIFIED) for peer in peers})
    peer_bit = {peer: 1 << number for number, peer in enumerate(peers)}
    domain_bit = {domain: 1 << number for number, domain in enumerate(domains)}
    by_peers = {slot: _union(peer_bit[peer] for peer in held) for slot, held in holders.items()}
    by_domains = {
        slot: _union(domain_bit[domain_of.get(peer, UNVERIFIED)] for peer in held)
        for slot, held in holders.items()
    }
    distinct = set(shapes)
    any_peers, peers_exact = _survivable(distinct, by_peers, len(peers))
    any_domains, domains_exact = _survivable(distinct, by_domains, len(domains))
    return Guarantee(any_peers, any_domains, peers_exact and domains_exact)


def worst(guarantees: Iterable[Guarantee]) -> Guarantee | None:
    """The guarantee of a root from those of its segments; None where it has none."""
    found = list(guarantees)
    if not found:
        return None
    return Guarantee(
        min(one.peers for one in found),
        min(one.domains for one in found),
        all(one.exact for one in found),
    )


def describe(guarantee: Guarantee) -> str:
    """The guarantee in words, as the command line and the interfaces print it."""
    if guarantee.peers < 0:
        return "not readable at present"
    if guarantee.peers == 0:
        return "does not survive the loss of every single peer"
    peers = f"survives the loss of any {_count(guarantee.peers, 'peer')}"
    if guarantee.domains <= 0:
        return f"{peers}, not of every failure domain"
    return f"{peers} (any {_count(guarantee.domains, 'failure domain')})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _union(bits: Iterable[int]) -> int:
    mask = 0
    for bit in bits:
        mask |= bit
    return mask


def _survivable(
    shapes: Iterable[StripeShape], held_by: Mapping[int, int], everybody: int
) -> tuple[int, bool]:
    """The largest number of holders of which any may be lost, and whether it is exact;
    `held_by` has each slot's holders as a bit mask."""
    least, exact = everybody, True
    for one in shapes:
        masks = [held_by[slot] for slot in one.slots if held_by.get(slot)]
        spare = len(masks) - one.data_count
        if spare < 0:
            return -1, True
        losses, found = _fewest_losses(Counter(masks), spare + 1)
        if losses - 1 < least:
            least, exact = losses - 1, found
        elif losses - 1 == least:
            exact = exact and found
    return least, exact


def _fewest_losses(masks: Counter[int], slots: int) -> tuple[int, bool]:
    """The size of the smallest set of holders that includes all holders of at least `slots`
    of the slots, and whether it is exact or a lower bound."""
    # A slot is lost in equal shares with each of its holders: no set can lose more slots
    # than the shares of its members add up to.
    shares: dict[int, Fraction] = {}
    for mask, count in masks.items():
        for number in range(mask.bit_length()):
            if mask >> number & 1:
                share = Fraction(count, mask.bit_count())
                shares[number] = shares.get(number, Fraction(0)) + share
    size, total = 0, Fraction(0)
    for share in sorted(shares.values(), reverse=True):
        if total >= slots:
            break
        size, total = size + 1, total + share
    if all(mask.bit_count() == 1 for mask in masks):
        return size, True  # with one holder a slot, the shares are the losses
    groups = sorted(masks.items(), key=lambda group: (group[0].bit_count() / group[1], group[0]))
    steps_left = GUARANTEE_STEPS_MAX
    while True:
        found, steps_left = _loses(groups, slots, size, steps_left)
        if found:
            return size, True
        if steps_left <= 0:
            return size, False
        size += 1


def _loses(
    groups: Sequence[tuple[int, int]], slots: int, size: int, steps: int
) -> tuple[bool, int]:
    """Whether some set of `size` holders includes all holders of `slots` of the slots (given
    as groups of equal masks with their counts), and the steps left; at 0 it is unknown."""
    remaining = sum(count for _, count in groups)
    stack = [(0, 0, 0, remaining)]  # next group, holders chosen, slots lost, slots undecided
    while stack:
        if steps <= 0:
            return False, 0
        steps -= 1
        number, chosen, lost, undecided = stack.pop()
        if lost >= slots:
            return True, steps
        if lost + undecided < slots:
            continue
        mask, count = groups[number]
        union = chosen | mask
        if union != chosen:
            stack.append((number + 1, chosen, lost, undecided - count))
        if union.bit_count() <= size:
            stack.append((number + 1, union, lost + count, undecided - count))
    return False, steps
