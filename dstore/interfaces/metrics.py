"""What a node tells Prometheus: its own registry, read when somebody scrapes.

The gateway counts its requests here as they happen; everything else is read off the node at
scrape time, so that no service knows of this module.  Each metric is described in
docs/reference/metrics.md.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from dstore import __version__
from dstore.core.erasure import engine_name
from dstore.errors import DstoreError
from dstore.service.bandwidth import Flow, Flows
from dstore.service.node import Node
from dstore.service.progress import NodeStatus
from dstore.storage.rows import SlotTotal

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_FIRST_BYTE_SECONDS: Final = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    30,
)

# The time series of when each counter was made say nothing that uptime does not.
disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotations


@dataclass(frozen=True)
class _Stored:
    """What the stores said when last asked; empty where they could not answer."""

    status: NodeStatus | None = None
    slots: tuple[SlotTotal, ...] = ()
    pins: int | None = None
    placements: int | None = None


class Metrics:
    """The metrics of one node, in a registry of their own."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.registry = CollectorRegistry(auto_describe=False)
        self.requests = Counter(
            "dstore_gateway_requests",
            "Requests answered, by method and status; 499 where the client went away first",
            ("method", "status"),
            registry=self.registry,
        )
        self.in_progress = Gauge(
            "dstore_gateway_requests_in_progress",
            "Requests being answered now",
            registry=self.registry,
        )
        self.sent_bytes = Counter(
            "dstore_gateway_sent_bytes",
            "Bytes of response bodies handed to clients",
            registry=self.registry,
        )
        self.aborted = Counter(
            "dstore_gateway_aborted",
            "Responses cut off because the rest of the content could not be had",
            registry=self.registry,
        )
        self.first_byte_seconds = Histogram(
            "dstore_gateway_first_byte_seconds",
            "Time from a GET of content to the first byte of its body",
            buckets=_FIRST_BYTE_SECONDS,
            registry=self.registry,
        )
        self._collector = _NodeCollector(node)
        self.registry.register(self._collector)
        ProcessCollector(registry=self.registry)

    async def scrape(self) -> bytes:
        """Ask the stores, then `render`."""
        self._collector.stored = await _ask_stores(self._node)
        return self.render()

    def render(self) -> bytes:
        """All metrics in Prometheus's text format (`CONTENT_TYPE`); what the stores say is as
        of the last `scrape`."""
        return generate_latest(self.registry)


async def _ask_stores(node: Node) -> _Stored:
    try:
        catalog = await node.totals()
        return _Stored(await node.summary(), catalog.slots, catalog.pins, catalog.placements)
    except DstoreError:
        # /healthz says so; what is known without the stores is still worth telling.
        return _Stored()


@dataclass(eq=False)
class _NodeCollector(Collector):
    """Reads the node whenever the registry is rendered."""

    node: Node
    stored: _Stored = field(default_factory=_Stored)

    def collect(self) -> Iterator[Metric]:
        yield from self._whole()
        yield from self._reading()
        yield from self._storage()
        yield from self._workers()

    def _whole(self) -> Iterator[Metric]:
        yield InfoMetricFamily(
            "dstore_build",
            "The software that runs",
            {
                "version": __version__,
                "erasure_engine": engine_name(),
                "python": platform.python_version(),
            },
        )
        node = self.node
        yield _gauge(
            "dstore_connected_peers", "Peers with a connection", len(node.network.connected())
        )
        yield _gauge("dstore_dht_peers", "Peers in the DHT routing table", node.routing.table_size)
        yield _gauge("dstore_dht_records", "Provider records kept for others", node.routing.records)
        yield from _traffic(node)
        if self.stored.status is not None:
            yield _gauge(
                "dstore_uptime_seconds",
                "Seconds since the node started",
                self.stored.status.uptime_seconds,
            )

    def _reading(self) -> Iterator[Metric]:
        counters = self.node.counters
        blocks = CounterMetricFamily(
            "dstore_read_blocks", "Blocks read for this node's own readers", labels=("source",)
        )
        blocks.add_metric(["store"], counters.local_blocks)
        blocks.add_metric(["peer"], counters.fetched_blocks)
        blocks.add_metric(["decoded"], counters.decoded_blocks)
        yield blocks
        yield CounterMetricFamily(
            "dstore_fetched_bytes", "Bytes of blocks fetched from peers", counters.fetched_bytes
        )
        yield CounterMetricFamily(
            "dstore_late_answers",
            "Requests to a peer that were overtaken by a second way to the same block",
            counters.late_answers,
        )
        faults = CounterMetricFamily(
            "dstore_peer_faults", "Rules broken by peers", labels=("kind",)
        )
        for kind, count in sorted(counters.faults.items()):
            faults.add_metric([kind], count)
        yield faults

    def _storage(self) -> Iterator[Metric]:
        stored = self.stored
        if stored.status is not None:
            yield _gauge("dstore_store_blocks", "Blocks stored here", stored.status.blocks)
            yield _gauge("dstore_store_bytes", "Bytes of blocks stored here", stored.status.bytes)
            yield _gauge(
                "dstore_store_capacity_bytes",
                "Bytes of blocks that may be stored here",
                stored.status.capacity_bytes,
            )
        if stored.pins is not None and stored.placements is not None:
            yield _gauge("dstore_pins", "Roots that this node's owner keeps", stored.pins)
            yield _gauge(
                "dstore_placements",
                "Slots that other peers are known to hold",
                stored.placements,
            )
            slots = GaugeMetricFamily(
                "dstore_slots", "Slots kept for owners, by state", labels=("state",)
            )
            slot_bytes = GaugeMetricFamily(
                "dstore_slot_bytes", "Bytes of the slots kept for owners", labels=("state",)
            )
            for total in stored.slots:
                slots.add_metric([total.state], total.slots)
                slot_bytes.add_metric([total.state], total.bytes)
            yield slots
            yield slot_bytes

    def _workers(self) -> Iterator[Metric]:
        steps = CounterMetricFamily(
            "dstore_worker_steps", "Steps of background work done", labels=("worker",)
        )
        failures = CounterMetricFamily(
            "dstore_worker_failures", "Steps of background work that failed", labels=("worker",)
        )
        for worker in self.node.workers:
            steps.add_metric([worker.name], worker.steps)
            failures.add_metric([worker.name], worker.failures)
        yield steps
        yield failures


def _traffic(node: Node) -> Iterator[Metric]:
    """Zeros where the network is no real one."""
    none = Flow(0, 0, 0, 0)
    flows = node.bandwidth.flows() if node.bandwidth is not None else Flows(none, none, {})
    classes = {"foreground": flows.foreground, "repair": flows.repair}
    total = "Bytes on connections to peers"
    for name, text, labelled in (
        ("dstore_peer_traffic", total, {"": flows.total}),
        ("dstore_class_traffic", f"{total}, by what they were for", classes),
        ("dstore_group_traffic", f"{total} of a configured group", flows.groups),
    ):
        label = {"dstore_class_traffic": "traffic", "dstore_group_traffic": "peers"}.get(name)
        labels = ("direction",) if label is None else (label, "direction")
        carried = CounterMetricFamily(f"{name}_bytes", text, labels=labels)
        rate = GaugeMetricFamily(
            f"{name}_bytes_per_second", f"{text}, a second of late", labels=labels
        )
        for key, flow in labelled.items():
            before = [] if label is None else [key]
            carried.add_metric([*before, "sent"], flow.sent_bytes)
            carried.add_metric([*before, "received"], flow.received_bytes)
            rate.add_metric([*before, "sent"], flow.sent_rate)
            rate.add_metric([*before, "received"], flow.received_rate)
        yield carried
        yield rate
    members = GaugeMetricFamily(
        "dstore_group_peers",
        "Peers of a configured group: named, or known to say that they have its labels",
        labels=("peers", "by"),
    )
    if node.bandwidth is not None:
        for key, group in node.bandwidth.options.groups.items():
            members.add_metric([key, "id"], len(group.peers))
            members.add_metric([key, "label"], len(node.bandwidth.shaper.claimants(key)))
    yield members


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)
