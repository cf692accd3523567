"""Where a node listens or is dialled: IP or DNS name and TCP port, as a multiaddr.

Text inside dstore, binary on the wire.  Addresses of other transports are no error where a
peer names them; they are passed over.  Specification: multiformats multiaddr.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final

from dstore.core.cid import decode_varint, encode_varint
from dstore.limits import ADDRESS_CHARS_MAX

_IP4: Final = 4
_TCP: Final = 6
_IP6: Final = 41
_P2P: Final = 421
_DNS_CODES: Final = {"dns": 53, "dns4": 54, "dns6": 55}
_DNS_NAMES: Final = {code: name for name, code in _DNS_CODES.items()}
_DNS_NAME: Final = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")


# The same few addresses are told by everybody, several times to each connection: those read lately
# are kept, and what was made of them with them.
_KEPT: Final = 1024


@lru_cache(_KEPT)
def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(host)


@lru_cache(_KEPT)
def _is_global(host: str) -> bool:
    return _ip(host).is_global


@dataclass(frozen=True)
class Endpoint:
    """Where to dial or listen: `kind` is ip4, ip6, dns, dns4 or dns6."""

    kind: str
    host: str
    port: int

    def __str__(self) -> str:
        return self._text

    @cached_property
    def _text(self) -> str:
        return f"/{self.kind}/{self.host}/tcp/{self.port}"

    @cached_property
    def ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        """The address itself, None behind a DNS name."""
        return _ip(self.host) if self.kind in ("ip4", "ip6") else None

    @property
    def is_public(self) -> bool:
        """Whether it lies beyond the local network."""
        return self.ip is None or _is_global(self.host)

    @cached_property
    def dialable(self) -> bool:
        """Whether a connection to it could mean anything."""
        ip = self.ip
        return self.port > 0 and (ip is None or not (ip.is_unspecified or ip.is_multicast))

    @cached_property
    def binary(self) -> bytes:
        """The wire form."""
        if self.ip is not None:
            head = encode_varint(_IP4 if self.kind == "ip4" else _IP6) + self.ip.packed
        else:
            name = self.host.encode("ascii")
            head = encode_varint(_DNS_CODES[self.kind]) + encode_varint(len(name)) + name
        return head + encode_varint(_TCP) + self.port.to_bytes(2, "big")


def endpoint_of_socket(host: str, port: int) -> Endpoint:
    """The endpoint of an address as the operating system gives it."""
    ip = _ip(host.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return Endpoint(f"ip{ip.version}", str(ip), port)


@lru_cache(_KEPT)
def parse_endpoint(address: str) -> Endpoint:
    """The endpoint that `/ip4|ip6|dns|dns4|dns6/<host>/tcp/<port>` names.
    Raises ValueError on anything else, an address with a /p2p part included."""
    if len(address) > ADDRESS_CHARS_MAX:
        raise ValueError(f"a multiaddr of {len(address)} characters")
    parts = address.split("/")
    if len(parts) != 5 or parts[0] or parts[3] != "tcp":
        raise ValueError(f"not a TCP multiaddr: {address!r}")
    _, kind, host, _, port_text = parts
    if not (port_text.isascii() and port_text.isdigit() and len(port_text) <= 5):
        raise ValueError(f"no TCP port in {address!r}")
    port = int(port_text)
    if port > 65_535:
        raise ValueError(f"no TCP port in {address!r}")
    # A zone behind an IPv6 address, any text, means something on one machine only.
    if "%" in host:
        raise ValueError(f"a multiaddr with a zone: {address!r}")
    if kind == "ip4":
        return Endpoint(kind, str(ipaddress.IPv4Address(host)), port)
    if kind == "ip6":
        return Endpoint(kind, str(ipaddress.IPv6Address(host)), port)
    if kind in _DNS_CODES and _DNS_NAME.fullmatch(host):
        return Endpoint(kind, host, port)
    raise ValueError(f"not a TCP multiaddr: {address!r}")


def endpoint_of_binary(data: bytes) -> Endpoint:
    """The endpoint of a wire form, a trailing /p2p part left out.
    Raises ValueError on malformed bytes and on transports dstore does not know."""
    if len(data) > ADDRESS_CHARS_MAX:
        raise ValueError(f"a multiaddr of {len(data)} bytes")
    code, at = decode_varint(data)
    if code in (_IP4, _IP6):
        kind, size = ("ip4", 4) if code == _IP4 else ("ip6", 16)
        host = str(ipaddress.ip_address(data[at : at + size]))
    elif code in _DNS_NAMES:
        kind = _DNS_NAMES[code]
        size, at = decode_varint(data, at)
        host = data[at : at + size].decode("ascii")
        if not _DNS_NAME.fullmatch(host):
            raise ValueError(f"no DNS name: {host!r}")
    else:
        raise ValueError(f"a multiaddr of transport {code}")
    code, at = decode_varint(data, at + size)
    port = data[at : at + 2]
    if code != _TCP or len(port) < 2:
        raise ValueError("not a TCP multiaddr")
    at += 2
    if at < len(data):
        code, at = decode_varint(data, at)
        size, at = decode_varint(data, at)
        if code != _P2P or at + size != len(data):
            raise ValueError("not a plain TCP multiaddr")
    return Endpoint(kind, host, int.from_bytes(port, "big"))


def to_binary(address: str) -> bytes:
    """The wire form.  Raises ValueError on what `parse_endpoint` does not take."""
    return parse_endpoint(address).binary
