"""/healthz and /metrics: what they say, when they say no, and that the documentation has it."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dstore.errors import CorruptStore
from dstore.interfaces.gateway.app import gateway_app
from dstore.interfaces.metrics import Metrics
from dstore.limits import WORKER_FAILURES_BROKEN
from dstore.storage.blockstore import Usage
from dstore.testing.cluster import open_cluster
from dstore.testing.deterministic import run_deterministic
from tests.unit.interfaces.gateway_client import request
from tests.unit.interfaces.test_gateway import DATA, Site, on_site

REFERENCE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "metrics.md"


def values(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def test_requests_are_counted() -> None:
    async def test(site: Site) -> None:
        cid = site.put(b"words")
        await site.get(f"/ipfs/{cid}")
        await site.get(f"/ipfs/{cid}", "HEAD")
        await site.get(f"/ipfs/{cid}", range="bytes=0-1")
        await site.get("/ipfs/x")
        await site.get(f"/ipfs/{cid}", "BREW")
        answer = await site.get("/metrics")
        assert answer.status == 200
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        got = values(answer.text)
        assert got[key("dstore_gateway_requests_total", method="GET", status="200")] == 1
        assert got[key("dstore_gateway_requests_total", method="GET", status="206")] == 1
        assert got[key("dstore_gateway_requests_total", method="HEAD", status="200")] == 1
        assert got[key("dstore_gateway_requests_total", method="GET", status="400")] == 1
        assert got[key("dstore_gateway_requests_total", method="other", status="405")] == 1
        assert got[key("dstore_gateway_first_byte_seconds_count")] == 2
        assert got[key("dstore_gateway_requests_in_progress")] == 1  # this one
        assert got[key("dstore_store_blocks")] == 1
        assert got[key("dstore_store_bytes")] == 5
        assert got[key("dstore_gateway_sent_bytes_total")] >= 7

    on_site(test)


def test_a_node_tells_what_it_holds_and_read() -> None:
    async def main() -> None:
        async with open_cluster(7) as cluster:
            adder = Site(cluster[0])

            async def chunks() -> AsyncIterator[bytes]:
                yield DATA

            result = await adder.node.add_stream(chunks())
            holder = next(
                number
                for number in cluster.alive
                if number and cluster[number].stores.catalog.held_slots()
            )
            got = values((await Metrics(cluster[holder]).scrape()).decode())
            slots = cluster[holder].stores.catalog.held_slots()
            assert got[key("dstore_slots", state="held")] == len(slots)
            assert got[key("dstore_slot_bytes", state="held")] == sum(one.bytes for one in slots)
            assert got[key("dstore_connected_peers")] >= 1
            assert got[key("dstore_dht_peers")] >= 1
            metrics = Metrics(cluster[0])
            got = values((await metrics.scrape()).decode())
            assert got[key("dstore_pins")] == 1
            assert got[key("dstore_placements")] >= 6
            await cluster.kill(0)
            app = gateway_app(cluster[holder], timeout_seconds=30)
            assert (await request(app, f"/ipfs/{result.cid}")).body == DATA
            got = values((await request(app, "/metrics")).text)
            assert got[key("dstore_read_blocks_total", source="peer")] >= 3
            assert got[key("dstore_fetched_bytes_total")] > len(DATA) // 2

    run_deterministic(1, main)


def test_every_metric_is_documented() -> None:
    async def test(site: Site) -> None:
        text = (await site.get("/metrics")).text
        exported = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
        documented = set(re.findall(r"^\| `([a-z_]+)`", REFERENCE.read_text(), re.MULTILINE))
        assert exported == documented

    on_site(test)


def test_a_healthy_node_says_so() -> None:
    async def test(site: Site) -> None:
        answer = await site.get("/healthz")
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/json"
        told = json.loads(answer.body)
        assert told["status"] == "ok"
        assert told["peer_id"] == str(site.node.peer_id)
        assert told["problems"] == []
        app = gateway_app(site.node, timeout_seconds=30, stopping=lambda: True)
        answer = await request(app, "/healthz")
        assert (answer.status, json.loads(answer.body)["status"]) == (503, "stopping")

    on_site(test)


def test_broken_stores_and_workers_show(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Usage:
        raise CorruptStore("the disk is gone")

    async def main() -> None:
        async with open_cluster(1) as cluster:
            site = Site(cluster[0])
            worker = site.node.workers[0]
            worker.failures_in_a_row = WORKER_FAILURES_BROKEN
            answer = await site.get("/healthz")
            assert answer.status == 503
            assert worker.name in json.loads(answer.body)["problems"][0]
            worker.failures_in_a_row = 0
            monkeypatch.setattr(cluster.nodes[0].blocks, "usage", broken)
            answer = await site.get("/healthz")
            assert (answer.status, json.loads(answer.body)["status"]) == (503, "broken")
            assert "the disk is gone" in answer.text
            assert (await site.get("/metrics")).status == 200

    run_deterministic(1, main)
