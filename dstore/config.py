"""The configuration: one TOML file, overridden by the environment, checked as a whole.

Each section is a frozen struct whose fields carry their own documentation; from these come
the parser, the faults (all at once, each with the nearest known key) and the commented
`configs/node.toml` (`interfaces/nodetoml.py`).  Components never see a `Config`: `interfaces`
hands each its own options.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from dstore.core.bandwidth import DAY_MINUTES, Limits, Period
from dstore.core.endpoint import parse_endpoint
from dstore.core.peerid import PeerId
from dstore.errors import ConfigError, InvalidCid
from dstore.limits import (
    BANDWIDTH_BYTES_PER_SECOND_MIN,
    BANDWIDTH_GROUPS_MAX,
    BANDWIDTH_PERIODS_MAX,
    CONNECTIONS_MAX,
    DURATION_SECONDS_MAX,
    LABEL_BYTES_MAX,
    LEASE_SECONDS,
    LEASE_SECONDS_MIN,
    PIN_SECONDS_DEFAULT,
    SIZE_BYTES_MAX,
)
from dstore.network.addresses import parse_target

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMGTP]i?)?B?\s*$", re.IGNORECASE)
_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(s|m|h|d|w|y)\s*$")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400, "y": 365 * 86_400}
_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_RATE = re.compile(r"(up|down|repair)=([^=]+?)(?=\s+(?:up|down|repair)=|\s*$)")
_PERIOD = re.compile(
    r"^\s*(?:(mon|tue|wed|thu|fri|sat|sun)(?:-(mon|tue|wed|thu|fri|sat|sun))?\s+)?"
    r"(\d{1,2}):([0-5]\d)-(\d{1,2}):([0-5]\d)((?:\s+(?:up|down|repair)=[^=]+?)+)\s*$",
    re.IGNORECASE,
)
_LISTEN = re.compile(r"^(\[[0-9a-fA-F:]+\]|[^:\s]+):(\d{1,5})$")


def parse_size(text: str) -> int:
    """Bytes in "10 GiB", "500MB" or "4096".  Raises ValueError."""
    match = _SIZE.match(text)
    if match is None:
        raise ValueError(f'not a size: {text!r} (write it like "100 GiB")')
    unit = (match[2] or "").lower()
    power = " kmgtp".index(unit[0]) if unit else 0
    size = float(match[1]) * (1024 if unit.endswith("i") else 1000) ** power
    if size > SIZE_BYTES_MAX:
        raise ValueError(f"too much: {text[:40]!r} (at most 1 EiB)")
    return int(size)


def parse_duration(text: str) -> int:
    """Seconds in "30d", "12h" or "1y", one at least.  Raises ValueError."""
    match = _DURATION.match(text)
    if match is None:
        raise ValueError(f'not a duration: {text!r} (write it like "30d", "12h" or "1y")')
    seconds = float(match[1]) * _SECONDS[match[2]]
    if seconds > DURATION_SECONDS_MAX:
        raise ValueError(f"too long: {text[:40]!r} (at most 100 years)")
    if seconds < 1:
        raise ValueError(f"too short: {text[:40]!r} (at least 1s)")
    return int(seconds)


def parse_listen(text: str) -> tuple[str, int]:
    """Host and port of "127.0.0.1:8180" or "[::1]:8180".  Raises ValueError."""
    match = _LISTEN.match(text)
    if match is None or int(match[2]) > 65_535:
        raise ValueError(f'not an address to listen on: {text!r} (write it like "127.0.0.1:8180")')
    return match[1].strip("[]"), int(match[2])


def parse_rate(text: str) -> float:
    """Bytes a second in "10 MB/s" or "512 KiB/s"; "0" is no limit.  Raises ValueError."""
    rate = parse_size(text.removesuffix("/s"))
    if not rate:
        return math.inf
    if rate < BANDWIDTH_BYTES_PER_SECOND_MIN:
        raise ValueError(
            f"{text!r} is less than {BANDWIDTH_BYTES_PER_SECOND_MIN // 1000} KB/s, "
            "and peers would take the node for dead"
        )
    return float(rate)


def parse_peers(texts: Sequence[str]) -> frozenset[PeerId]:
    """Peer ids.  Raises ValueError."""
    try:
        return frozenset(map(PeerId.parse, texts))
    except InvalidCid as error:
        raise ValueError(f"not all of these are peer ids: {error}") from error


def parse_periods(texts: Sequence[str]) -> tuple[Period, ...]:
    """Periods like "mon-fri 08:00-18:00 up=1MB/s down=5MB/s"; every day where none is named, no
    limit where a direction is left out.  Raises ValueError."""
    if len(texts) > BANDWIDTH_PERIODS_MAX:
        raise ValueError(f"{len(texts)} periods; at most {BANDWIDTH_PERIODS_MAX}")
    return tuple(_period(text) for text in texts)


def _period(text: str) -> Period:
    match = _PERIOD.match(text)
    if match is None:
        raise ValueError(
            f'not a period: {text!r} (write it like "mon-fri 08:00-18:00 up=1MB/s down=5MB/s")'
        )
    first, last = (
        (_DAYS.index(match[1].lower()), _DAYS.index((match[2] or match[1]).lower()))
        if match[1]
        else (0, 6)
    )
    days = frozenset((first + step) % 7 for step in range((last - first) % 7 + 1))
    start, end = (int(match[i]) * 60 + int(match[i + 1]) for i in (3, 5))
    if start >= DAY_MINUTES or end > DAY_MINUTES or start == end:
        raise ValueError(f"not hours of a day: {text!r}")
    rates = {name: parse_rate(rate) for name, rate in _RATE.findall(match[7])}
    return Period(days, start, end, Limits(**rates))


Rate = Annotated[str, msgspec.Meta(extra={"parse": parse_rate})]
Periods = Annotated[tuple[str, ...], msgspec.Meta(extra={"parse": parse_periods})]
GroupName = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_-]{1,32}$")]
Size = Annotated[str, msgspec.Meta(extra={"parse": parse_size})]
Duration = Annotated[str, msgspec.Meta(extra={"parse": parse_duration})]
Listen = Annotated[str, msgspec.Meta(extra={"parse": parse_listen})]


class NodeSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What this node does for the network."""

    role: Literal["storage", "client"] = "storage"
    """"storage" keeps fragments for others and serves the DHT; "client" does neither
    (a gateway, a laptop)."""


class StorageSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much of the disk dstore may use."""

    capacity: Size = "100 GiB"
    """Bytes that all blocks together may take.  A full node refuses new slots and goes on
    serving what it has."""
    reserve: Size = "1 GiB"
    """Bytes of the disk that dstore leaves free, whatever the capacity says."""
    memory_cache: Size = "32 MiB"
    """Bytes of blocks fetched from peers that are kept in memory."""


class DomainSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What fails together."""

    label: str = ""
    """The failure domain of this machine: a household, a rack, an operator.  Nodes with the
    same label count as one when dstore says how many losses a file survives.  Empty: the
    address tells."""


class NetworkSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """libp2p."""

    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/4180",)
    """Multiaddrs to listen on (TCP; port 0 takes any free one)."""
    announce: tuple[str, ...] = ()
    """Multiaddrs to tell others instead of those listened on, e.g. a forwarded port."""
    bootstrap: tuple[str, ...] = ()
    """Multiaddrs of nodes to join the network by, each ending in /p2p/PEER-ID."""
    dht_protocol: str = "/dstore/kad/1.0.0"
    """Protocol id of the DHT.  Networks with different ids do not see each other."""
    connections_max: Annotated[int, msgspec.Meta(ge=8, le=100_000)] = CONNECTIONS_MAX
    """Connections held at once."""


class PeersSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Peers with limits of their own, beside those of all, on the local network too."""

    ids: tuple[str, ...] = ()
    """Their peer ids; no peer is in two groups."""
    labels: tuple[str, ...] = ()
    """Labels (`domain.label`) of peers that are in the group too; no label is in two groups."""
    up: Rate = "0"
    """What is sent to all of these together."""
    down: Rate = "0"
    """What is received from them."""
    schedule: Periods = ()
    """Other limits of theirs by the hour, as `bandwidth.schedule` has them, without repair."""


class BandwidthSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits for what goes over connections to peers, "0" for none; `dstore bandwidth` changes
    them while the node runs."""

    up: Rate = "0"
    """What is sent, like "5 MB/s"; all peers together."""
    down: Rate = "0"
    """What is received."""
    repair: Rate = "0"
    """Of what is sent, and of what is received, the part for repair.  Whatever it is, repair
    comes after everything else: it has what that leaves of `up` and `down`, or a sixteenth."""
    lan: bool = False
    """Whether the limits hold for peers on the local network too."""
    schedule: Periods = ()
    """Other limits by the hour of local time, the first that holds, like
    "mon-fri 08:00-18:00 up=1MB/s down=5MB/s" or "22:00-06:00 up=0 repair=1MB/s"."""
    peers: dict[GroupName, PeersSection] = {}
    """Peers with limits of their own, beside those of all and on the local network too, in a
    table for each group, which `dstore bandwidth --peers office` changes:
    [bandwidth.peers.office]
    ids = ["12D3Koo…"]
    labels = ["site-a"]
    down = "0"
    up = "1 MB/s"
    schedule = ["22:00-06:00 up=0"]
    A group names `ids`, `labels` or both.  A label is what a peer says of itself
    (`domain.label`): saying it adds a limit to those that the peer is under anyway."""


class PinsSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Defaults for what this node's owner adds."""

    lifetime: Duration = f"{PIN_SECONDS_DEFAULT // 86_400}d"
    """How long holders are asked to keep a file, from the day it is added."""
    lease: Duration = f"{LEASE_SECONDS // 86_400}d"
    """How long a lease that this node signs runs; it extends it while the pin is valid."""


class GatewaySection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The HTTP gateway: /ipfs/CID for browsers and curl."""

    enabled: bool = True
    """Whether to serve it."""
    listen: Listen = "127.0.0.1:8180"
    """Host and port (port 0 takes any free one).  Everybody who reaches it can read every
    file by its CID."""
    timeout: Duration = "30s"
    """How long a request may wait for its first byte before it is answered with 504."""


class ApiSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The local API that the command line uses; its URL and token stand in api.json."""

    listen: Listen = "127.0.0.1:0"
    """Host and port; loopback addresses only."""


class LogSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Logs, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe kind that is written."""
    format: Literal["text", "json"] = "text"
    """"json" writes one object a line."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole configuration."""

    node: NodeSection = NodeSection()
    storage: StorageSection = StorageSection()
    domain: DomainSection = DomainSection()
    network: NetworkSection = NetworkSection()
    bandwidth: BandwidthSection = BandwidthSection()
    pins: PinsSection = PinsSection()
    gateway: GatewaySection = GatewaySection()
    api: ApiSection = ApiSection()
    log: LogSection = LogSection()


def load_config(path: Path, environ: Mapping[str, str] | None = None) -> Config:
    """The configuration in `path` (defaults where the file is missing), overridden by
    `DSTORE_SECTION_KEY` variables.  Raises ConfigError naming every fault."""
    try:
        text = path.read_text("utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path} cannot be read: {error}"]) from error
    return parse_config(text, os.environ if environ is None else environ, str(path))


def parse_config(text: str, environ: Mapping[str, str], origin: str = "node.toml") -> Config:
    """As `load_config`, from the text of the file."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{origin} is not TOML: {error}"]) from error
    faults: list[str] = []
    sections = {field.name: field.type for field in msgspec.structs.fields(Config)}
    for name in tree.keys() - sections.keys():
        faults.append(f"{origin}: unknown section [{name}]{_nearest(name, sections)}")
    values: dict[str, Any] = {}
    for name, section in sections.items():
        given = tree.get(name, {})
        if not isinstance(given, dict):
            faults.append(f"{origin}: {name} is a section: write [{name}]")
            continue
        merged, overridden = _with_environment(name, section, given, environ)
        faults += _unknown_variables(name, section, environ)
        values[name] = _section(name, section, merged, overridden, faults)
    if not faults:
        faults += _contradictions(values)
    if faults:
        raise ConfigError(sorted(faults))
    return Config(**values)


def _section(
    name: str, section: Any, given: Mapping[str, Any], overridden: set[str], faults: list[str]
) -> Any:
    """The section's struct; its faults are appended, each with the key's full name, or that
    of the variable which overrides it."""
    fields = {field.name: field for field in msgspec.structs.fields(section)}
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in fields:
            faults.append(f"unknown key {name}.{key}{_nearest(key, fields)}")
            continue
        try:
            values[key] = msgspec.convert(value, fields[key].type)
            for parse in _parsers(fields[key].type):
                parse(values[key])
            if key == "peers":
                _check_groups(values[key])
        except (msgspec.ValidationError, ValueError) as error:
            where = _variable(name, key) if key in overridden else f"{name}.{key}"
            faults.append(f"{where}: {error}")
    return None if faults else section(**values)


def _check_groups(groups: Mapping[str, PeersSection]) -> None:
    """Raises ValueError where limits, hours, peers or labels are none, or one of the latter is
    in two groups."""
    if len(groups) > BANDWIDTH_GROUPS_MAX:
        raise ValueError(f"{len(groups)} groups; at most {BANDWIDTH_GROUPS_MAX}")
    seen: dict[PeerId | str, str] = {}
    for name, group in groups.items():
        for rate in (group.up, group.down):
            parse_rate(rate)
        if any(period.limits.repair < math.inf for period in parse_periods(group.schedule)):
            raise ValueError(f"{name}.schedule: repair has limits of its own for all peers only")
        if not all(0 < len(label.encode()) <= LABEL_BYTES_MAX for label in group.labels):
            raise ValueError(f"{name}.labels: a label has 1 to {LABEL_BYTES_MAX} bytes")
        members: list[PeerId | str] = [*parse_peers(group.ids), *group.labels]
        if not members:
            raise ValueError(f"{name} has neither ids nor labels")
        for member in members:
            if seen.setdefault(member, name) != name:
                raise ValueError(f"{member} is in {seen[member]} and in {name}")


def _with_environment(
    name: str, section: Any, given: Mapping[str, Any], environ: Mapping[str, str]
) -> tuple[dict[str, Any], set[str]]:
    """The section's values as the environment overrides them, and which it does."""
    merged = dict(given)
    overridden: set[str] = set()
    for field in _of_environment(section):
        text = environ.get(_variable(name, field.name))
        if text is None:
            continue
        overridden.add(field.name)
        if isinstance(field.default, tuple):
            separator = r"\s*,\s*" if field.name == "schedule" else r"[,\s]+"
            merged[field.name] = [part for part in re.split(separator, text) if part]
        elif isinstance(field.default, bool):
            merged[field.name] = {"true": True, "1": True, "false": False, "0": False}.get(
                text.lower(), text
            )
        elif isinstance(field.default, int):
            merged[field.name] = int(text) if text.isdecimal() else text
        else:
            merged[field.name] = text
    return merged, overridden


def _of_environment(section: Any) -> list[Any]:
    """The fields that a variable can override: all but tables."""
    fields = msgspec.structs.fields(section)
    return [field for field in fields if field.name != "peers"]


def _variable(section: str, key: str) -> str:
    return f"DSTORE_{section}_{key}".upper()


def _unknown_variables(name: str, section: Any, environ: Mapping[str, str]) -> list[str]:
    """A variable that misspells a key of the section would be passed over in silence."""
    known = {_variable(name, field.name): field for field in _of_environment(section)}
    return [
        f"unknown variable {variable}{_nearest(variable, known)}"
        for variable in environ
        if variable.startswith(_variable(name, "")) and variable not in known
    ]


def _contradictions(values: Mapping[str, Any]) -> list[str]:
    faults = []
    host, _ = parse_listen(values["api"].listen)
    if host not in {"127.0.0.1", "::1", "localhost"}:
        faults.append(f"api.listen: {host} is not a loopback address; the API is for this machine")
    if parse_size(values["storage"].capacity) <= 0:
        faults.append('storage.capacity: must be more than nothing (role = "client" stores none)')
    if parse_duration(values["pins"].lease) < LEASE_SECONDS_MIN:
        faults.append("pins.lease: at least 1d; nobody takes a shorter promise for one")
    if len(values["domain"].label.encode()) > LABEL_BYTES_MAX:
        faults.append(f"domain.label: at most {LABEL_BYTES_MAX} bytes")
    return faults + _address_faults(values["network"])


def _address_faults(network: NetworkSection) -> list[str]:
    faults = []
    parsers: list[tuple[str, tuple[str, ...], Callable[[str], object]]] = [
        ("listen", network.listen, parse_endpoint),
        ("announce", network.announce, parse_endpoint),
        ("bootstrap", network.bootstrap, parse_target),
    ]
    for key, addresses, parse in parsers:
        for address in addresses:
            try:
                parse(address)
            except ValueError as error:
                faults.append(f"network.{key}: {error}")
    return faults


def _parsers(kind: Any) -> list[Any]:
    extra = [meta.extra or {} for meta in getattr(kind, "__metadata__", ()) if meta.extra]
    return [entry["parse"] for entry in extra if "parse" in entry]


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else f" (known: {', '.join(known)})"
