"""What came of placing a root: how well it is protected, and what there is to say about that."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from dstore.core.cid import CID
from dstore.core.guarantee import Guarantee, describe, worst
from dstore.core.manifest import Code
from dstore.core.peerid import PeerId
from dstore.core.placement import lacking
from dstore.service.offer import Offer
from dstore.service.upload import Placed


@dataclass(frozen=True)
class Standing:
    """How well the slots of a manifest are spread: `reached` with those of this node,
    `elsewhere` what is left of it without this node."""

    reached: Guarantee
    elsewhere: Guarantee

    @property
    def survives_this_node(self) -> bool:
        """Whether the root is readable when this node is lost, with all that it has."""
        return self.elsewhere.peers >= 0


def standing(offer: Offer, holders: Mapping[int, Collection[PeerId]], own: PeerId) -> Standing:
    """The standing of one segment with these holders; this node is `own`."""
    others = {slot: [one for one in peers if one != own] for slot, peers in holders.items()}
    return Standing(offer.guarantee(holders), offer.guarantee(others))


def worst_standing(standings: Sequence[Standing]) -> Standing:
    """The standing of a root from those of its segments."""
    none = Guarantee(0, 0)
    return Standing(
        worst(one.reached for one in standings) or none,
        worst(one.elsewhere for one in standings) or none,
    )


@dataclass(frozen=True)
class Outcome:
    """What an add did for one code, segment by segment."""

    code: Code
    placed: Sequence[Placed]
    standing: Standing

    @property
    def complete(self) -> bool:
        """Whether every required slot has a lease."""
        return all(one.complete for one in self.placed)

    @property
    def protected(self) -> bool:
        """Whether that is of use to anybody once this node is lost."""
        return self.complete and self.standing.survives_this_node

    def warnings(self) -> list[str]:
        """What the user should know."""
        reached, code = self.standing.reached, self.code
        warnings = self._passed_over()
        if not self.complete:
            missing = sum(len(lacking(one.assignment, one.holders)) for one in self.placed)
            warnings.append(
                f"not protected: {missing} slots found no holder, the file is here all the same; "
                "add it again when those passed over are well or more storage nodes are there"
            )
        elif not self.protected:
            warnings.append(
                "not protected: without this node, which took the slots that found no other "
                "holder, the file is lost; add it again when more storage nodes are there"
            )
        elif reached.peers < 1:
            warnings.append(
                "the loss of a single peer may make the file unreadable: more storage nodes are "
                "needed"
            )
        elif min(reached.peers, reached.domains) < code.m:
            where = "" if reached.peers < code.m else ", in failure domains of their own"
            warnings.append(
                f"{describe(reached)}; code {code.k}+{code.m} can do more: add again when more "
                f"storage nodes are there{where}"
            )
        return warnings

    def warnings_kept(self, code: Code, before: Guarantee) -> list[str]:
        """The same, where the root stays under the `code` that it had `before`."""
        warnings = self._passed_over()
        warnings.append(
            f"code {self.code.k}+{self.code.m} found too few holders: as before, with "
            f"{code.k}+{code.m}, the file {describe(before)}"
        )
        return warnings

    def too_little(self, root: CID, reached: Guarantee, required_peers: int) -> str:
        """The error where more than `reached` was required."""
        if reached.peers < 0:
            what = f"{root} is readable on this node only: too few slots found a holder"
        else:
            what = f"{root} {describe(reached)}; {required_peers} were required"
        advice = "what was placed stays: add it again when more storage nodes are there"
        return "; ".join([what, *self._passed_over(), advice])

    def _passed_over(self) -> list[str]:
        failures = {str(peer): why for one in self.placed for peer, why in one.failures.items()}
        return [
            f"passed over: {why if peer in why else f'{peer}: {why}'}"
            for peer, why in failures.items()
        ]
