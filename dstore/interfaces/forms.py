"""The JSON forms of what the services give back: stable, documented in docs/reference/cli.md.

Only turns values into plain dictionaries.  Names of files may hold bytes that are no UTF-8;
`dump` writes them as escaped surrogates, which every JSON reader of Python takes back.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from dstore import errors
from dstore.errors import ConfigError, DstoreError

if TYPE_CHECKING:
    # Not imported: commands read and print forms, and would wait for what makes them.
    from dstore.service.bandwidth import Bandwidth, Flow
    from dstore.service.progress import (
        AddResult,
        Entry,
        GuaranteeStatus,
        NodeStatus,
        PeerStatus,
        Pin,
        Progress,
        RootStatus,
        SegmentStatus,
    )

Form = dict[str, Any]


def dump(form: object) -> str:
    """One line of JSON in ASCII."""
    return json.dumps(form, ensure_ascii=True, separators=(", ", ": "))


def _code(code: tuple[int, int] | None) -> str | None:
    return f"{code[0]}+{code[1]}" if code is not None else None


def _text(value: object) -> str | None:
    return str(value) if value is not None else None


def guarantee_form(guarantee: GuaranteeStatus | None) -> Form:
    """What may be lost; zeros where nothing is promised."""
    if guarantee is None:
        return {"peers": 0, "domains": 0, "text": "one copy, on this node"}
    return {"peers": guarantee.peers, "domains": guarantee.domains, "text": guarantee.text}


def progress_form(progress: Progress) -> Form:
    return {
        "stage": progress.stage,
        "done_bytes": progress.done_bytes,
        "total_bytes": progress.total_bytes,
    }


def add_form(result: AddResult, name: str | None = None) -> Form:
    return {
        "cid": str(result.cid),
        "name": name,
        "size": result.size,
        "manifest": _text(result.manifest),
        "code": _code(result.code),
        "protected": result.protected,
        "guarantee": guarantee_form(result.guarantee),
        "warnings": list(result.warnings),
    }


def _segment_form(segment: SegmentStatus) -> Form:
    return {
        "segment": str(segment.segment),
        "state": segment.state,
        "bytes": segment.bytes,
        "slots": [
            {"slot": one.slot, "state": one.state, "holders": [str(peer) for peer in one.holders]}
            for one in segment.slots
        ],
    }


def root_form(status: RootStatus) -> Form:
    return {
        "cid": str(status.cid),
        "manifest": _text(status.manifest),
        "code": _code(status.code),
        "state": status.state,
        "dag_bytes": status.dag_bytes,
        "guarantee": guarantee_form(status.guarantee),
        "segments": [_segment_form(segment) for segment in status.segments],
        "expires": status.expires,
    }


def node_form(status: NodeStatus) -> Form:
    return {
        "peer_id": str(status.peer_id),
        "addresses": [f"{address}/p2p/{status.peer_id}" for address in status.addresses],
        "version": status.version,
        "peers": status.peers,
        "blocks": status.blocks,
        "bytes": status.bytes,
        "capacity_bytes": status.capacity_bytes,
        "uptime_seconds": round(status.uptime_seconds, 3),
        "erasure_engine": status.erasure_engine,
        "warnings": list(status.warnings),
    }


def peer_form(peer: PeerStatus) -> Form:
    return {
        "peer_id": str(peer.peer),
        "addresses": list(peer.addresses),
        "connected": peer.connected,
        "role": peer.role,
        "free_bytes": peer.free_bytes,
        "domains": list(peer.domains),
        "faults": peer.faults,
        "last_seen": peer.last_seen,
    }


def bandwidth_form(bandwidth: Bandwidth) -> Form:
    """Rates in bytes a second, null for no limit; totals since the node started."""
    limits, flows = bandwidth.limits, bandwidth.flows()
    return {
        "up": _limit(limits.up),
        "down": _limit(limits.down),
        "repair": _limit(limits.repair),
        "lan": bandwidth.shaper.lan,
        "overridden": bandwidth.overridden,
        **_flow_form(flows.total),
        "traffic": {
            "foreground": _flow_form(flows.foreground),
            "repair": _flow_form(flows.repair),
        },
        "peers": {
            name: {
                "ids": sorted(map(str, group.peers)),
                "labels": sorted(group.labels),
                "claimed_by": sorted(map(str, bandwidth.shaper.claimants(name))),
                "up": _limit(bandwidth.group_limits(name).up),
                "down": _limit(bandwidth.group_limits(name).down),
                **_flow_form(flows.groups[name]),
            }
            for name, group in bandwidth.options.groups.items()
        },
    }


def _limit(rate: float) -> int | None:
    return None if rate == math.inf else int(rate)


def _flow_form(flow: Flow) -> Form:
    return {
        "sent_bytes": flow.sent_bytes,
        "received_bytes": flow.received_bytes,
        "sent_bytes_per_second": round(flow.sent_rate),
        "received_bytes_per_second": round(flow.received_rate),
    }


def pin_form(pin: Pin) -> Form:
    return {
        "cid": str(pin.cid),
        "mode": pin.mode,
        "name": pin.name,
        "code": _code(pin.code),
        "created": pin.created,
        "expires": pin.expires,
    }


def entry_form(entry: Entry) -> Form:
    return {
        "cid": str(entry.cid),
        "kind": entry.kind,
        "size": entry.size,
        "target": entry.target,
    }


def error_form(error: DstoreError) -> Form:
    """`error` is the nearest class of dstore/errors.py, so that a client can raise it again."""
    kind = next(one for one in type(error).__mro__ if one.__module__ == errors.__name__)
    form: Form = {
        "error": kind.__name__,
        "message": str(error),
        "exit_code": error.exit_code,
        "retry": error.retry,
    }
    if isinstance(error, ConfigError):
        form["faults"] = error.faults
    return form


def error_of(form: Form) -> DstoreError:
    """The error that `error_form` described; what it cannot be, its parent class."""
    message = str(form.get("message", "the daemon gave no reason"))
    kind = getattr(errors, str(form.get("error")), None)
    if not (isinstance(kind, type) and issubclass(kind, DstoreError)):
        return errors.NodeError(message)
    if kind is ConfigError or kind is errors.Refused:
        kind = kind.__base__
        assert kind is not None
    made = kind(message)
    assert isinstance(made, DstoreError)
    return made
