"""CID profiles: the choices that decide which CID a file or directory gets.

Two importers with the same profile give the same CID.  Specification: IPIP-0499.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final, Literal

from dstore.core.cid import CID, DAG_PB, RAW
from dstore.errors import CallerError
from dstore.limits import KIB, MIB


class UnknownProfile(CallerError):
    """No CID profile of that name."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One way to turn bytes into blocks.

    `hamt_estimate` says what is compared with `hamt_threshold_bytes` (strictly greater makes
    a HAMT): "block" the bytes of the plain directory block, "links" those of its names and
    CIDs alone.
    """

    name: str
    cid_version: Literal[0, 1]
    chunk_bytes: int
    links_max: int
    raw_leaves: bool
    hamt_fanout: int
    hamt_threshold_bytes: int
    hamt_estimate: Literal["block", "links"]

    def node_cid(self, block: bytes) -> CID:
        """The CID of a dag-pb block."""
        return CID.of(DAG_PB, block, version=self.cid_version)

    def raw_cid(self, block: bytes) -> CID:
        """The CID of a raw block; there is no version 0 of it."""
        return CID.of(RAW, block)


V1_2025: Final = Profile(
    name="unixfs-v1-2025",
    cid_version=1,
    chunk_bytes=MIB,
    links_max=1024,
    raw_leaves=True,
    hamt_fanout=256,
    hamt_threshold_bytes=256 * KIB,
    hamt_estimate="block",
)
V0_2015: Final = Profile(
    name="unixfs-v0-2015",
    cid_version=0,
    chunk_bytes=256 * KIB,
    links_max=174,
    raw_leaves=False,
    hamt_fanout=256,
    hamt_threshold_bytes=256 * KIB,
    hamt_estimate="links",
)
PROFILES: Final[dict[str, Profile]] = {profile.name: profile for profile in (V1_2025, V0_2015)}
DEFAULT_PROFILE: Final = V1_2025


def profile_named(name: str) -> Profile:
    """The profile called `name`.  Raises UnknownProfile, naming the nearest."""
    profile = PROFILES.get(name)
    if profile is None:
        near = get_close_matches(name, PROFILES, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UnknownProfile(f"no CID profile {name!r}: {', '.join(PROFILES)}{hint}")
    return profile
