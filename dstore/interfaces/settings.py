"""From the configuration that people write to the options that a node takes."""

from __future__ import annotations

from dstore.config import (
    BandwidthSection,
    Config,
    parse_duration,
    parse_peers,
    parse_periods,
    parse_rate,
    parse_size,
)
from dstore.core import wire
from dstore.core.bandwidth import Limits
from dstore.network.routing import RoutingOptions
from dstore.service.bandwidth import BandwidthOptions, PeerGroup
from dstore.service.node import NodeOptions


def node_options(config: Config) -> NodeOptions:
    """What the configuration says about the node."""
    client = config.node.role == "client"
    return NodeOptions(
        role=wire.Role.CLIENT if client else wire.Role.STORAGE,
        label=config.domain.label,
        capacity_bytes=parse_size(config.storage.capacity),
        reserve_bytes=parse_size(config.storage.reserve),
        memory_cache_bytes=parse_size(config.storage.memory_cache),
        pin_seconds=parse_duration(config.pins.lifetime),
        lease_seconds=parse_duration(config.pins.lease),
        listen=config.network.listen,
        announce=config.network.announce,
        bootstrap=config.network.bootstrap,
        connections_max=config.network.connections_max,
        bandwidth=_bandwidth(config.bandwidth),
        routing=RoutingOptions(
            protocol=config.network.dht_protocol, mode="client" if client else "server"
        ),
    )


def _bandwidth(section: BandwidthSection) -> BandwidthOptions:
    return BandwidthOptions(
        Limits(parse_rate(section.up), parse_rate(section.down), parse_rate(section.repair)),
        parse_periods(section.schedule),
        section.lan,
        {
            name: PeerGroup(
                parse_peers(group.ids),
                Limits(parse_rate(group.up), parse_rate(group.down)),
                parse_periods(group.schedule),
                frozenset(group.labels),
            )
            for name, group in section.peers.items()
        },
    )
