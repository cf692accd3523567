"""Which subnets addresses lie in, and how many peers of one subnet are taken.

Ids cost nothing, addresses in many networks do.  What is not reached through a public address
lies in no subnet: a local network is not limited.  Two widths are counted, what one
organisation typically holds (IPv4 /16, IPv6 /32) and what one line or rented machine gets
(IPv4 /24, IPv6 /48).  Behind a DNS name, its last two labels count as both.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from dstore.core.placement import ip_of


class Subnet(NamedTuple):
    """A part of the Internet, by name; `narrow` is the smaller of the two widths."""

    name: str
    narrow: bool


Subnets = frozenset[Subnet]
NOWHERE: Subnets = frozenset()


def subnets_of(addresses: Iterable[str]) -> Subnets:
    """The subnets in which multiaddrs lie; those that cannot be read lie in none."""
    return NOWHERE.union(*map(_subnets_of_one, addresses))


@lru_cache(maxsize=16_384)
def _subnets_of_one(address: str) -> Subnets:
    parts = address.split("/")
    if len(parts) < 3:
        return NOWHERE
    kind, host = parts[1], parts[2]
    if kind in ("dns", "dns4", "dns6"):
        labels = host.lower().rstrip(".").split(".")
        domain = ".".join(labels[-2:])
        single = len(labels) < 2  # localhost, or a name of the local network
        return NOWHERE if single else frozenset((Subnet(domain, False), Subnet(domain, True)))
    ip = ip_of(kind, host)
    if ip is None or not ip.is_global:
        return NOWHERE
    wide, narrow = (16, 24) if ip.version == 4 else (32, 48)
    return frozenset(
        Subnet(str(ipaddress.ip_network((ip, bits), strict=False)), bits == narrow)
        for bits in (wide, narrow)
    )


class Spread:
    """Counts of peers by subnet, with at most `wide` and `narrow` of one."""

    __slots__ = ("_counts", "_narrow", "_wide")

    def __init__(self, wide: int, narrow: int) -> None:
        self._wide = wide
        self._narrow = narrow
        self._counts: Counter[Subnet] = Counter()

    def fits(self, subnets: Subnets) -> bool:
        """Whether one more peer in all of `subnets` stays within the limits."""
        return all(
            self._counts[each] < (self._narrow if each.narrow else self._wide) for each in subnets
        )

    def add(self, subnets: Subnets) -> None:
        """One more peer."""
        self._counts.update(subnets)

    def remove(self, subnets: Subnets) -> None:
        """One peer fewer."""
        for each in subnets:
            self._counts[each] -= 1
            if not self._counts[each]:
                del self._counts[each]
