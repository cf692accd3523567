"""What a node has done since it started, in plain numbers: the metrics read them.

No service decides anything by them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

_KINDS_MAX: Final = 64  # kinds of faults told apart; they are words of our own, so far fewer


@dataclass
class Counters:
    """Only ever counted up.  Blocks are those read for this node's own readers."""

    local_blocks: int = 0
    fetched_blocks: int = 0
    fetched_bytes: int = 0
    decoded_blocks: int = 0
    late_answers: int = 0
    faults: Counter[str] = field(default_factory=Counter)

    def fault(self, kind: str) -> None:
        """A peer broke a rule."""
        if kind in self.faults or len(self.faults) < _KINDS_MAX:
            self.faults[kind] += 1
