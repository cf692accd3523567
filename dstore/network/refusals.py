"""How errors of the serving side are told to a peer: a reason from the list, never internals."""

from __future__ import annotations

from dstore.core import wire
from dstore.core.wire import Refusal
from dstore.errors import DataError, NodeError, NotFoundError, Refused, StorageFull
from dstore.limits import REFUSAL_CHARS_MAX


def refusing(error: Refused | NotFoundError | NodeError | DataError) -> wire.Refusing:
    """What to answer; texts of this node's own troubles stay here."""
    match error:
        case Refused():
            known = error.reason in Refusal.__members__.values()
            reason = Refusal(error.reason) if known else Refusal.OTHER
            return wire.Refusing(reason, str(error)[:REFUSAL_CHARS_MAX])
        case NotFoundError():
            return wire.Refusing(Refusal.NOT_FOUND)
        case StorageFull():
            return wire.Refusing(Refusal.FULL)
        case DataError():
            return wire.Refusing(Refusal.MALFORMED, str(error)[:REFUSAL_CHARS_MAX])
        case _:
            return wire.Refusing(Refusal.INTERNAL)
