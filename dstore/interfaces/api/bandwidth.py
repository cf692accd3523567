"""What a request to change bandwidth limits says, and setting that: all of it or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dstore.config import parse_rate
from dstore.core.bandwidth import Limits
from dstore.errors import CallerError
from dstore.interfaces.forms import Form
from dstore.service.bandwidth import Bandwidth


def override(bandwidth: Bandwidth, given: Form) -> None:
    """Set the limits that are named, keep the others.  Raises CallerError."""
    of_all: dict[str, object] = {
        name: given[name] for name in ("up", "down", "repair") if name in given
    }
    groups = given.get("peers", {})
    if not isinstance(groups, dict):
        raise CallerError("peers: limits by the name of a group are needed")
    changed = {}
    for name, limits in groups.items():
        if not isinstance(limits, dict) or limits.keys() - {"up", "down"}:
            raise CallerError(f"peers.{name}: up and down are needed, and nothing else")
        changed[name] = _changed(bandwidth.group_limits(name), limits, f"peers.{name}.")
    limits_of_all = _changed(bandwidth.limits, of_all, "") if of_all else None
    bandwidth.override(limits_of_all, changed)


def _changed(limits: Limits, given: Mapping[str, object], where: str) -> Limits:
    rates: dict[str, float] = {}
    for name, text in given.items():
        if not isinstance(text, str):
            raise CallerError(f"{where}{name}: a text is needed")
        try:
            rates[name] = parse_rate(text)
        except ValueError as error:
            raise CallerError(f"{where}{name}: {error}") from error
    return replace(limits, **rates)
