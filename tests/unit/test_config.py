"""The configuration: defaults, overrides, and every fault at once."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstore.config import (
    Config,
    load_config,
    parse_config,
    parse_duration,
    parse_listen,
    parse_periods,
    parse_rate,
    parse_size,
)
from dstore.core.bandwidth import Limits
from dstore.core.peerid import PeerId
from dstore.errors import ConfigError
from dstore.interfaces.nodetoml import commented
from dstore.interfaces.settings import node_options

NODE_TOML = Path(__file__).parents[2] / "configs" / "node.toml"


def test_the_shipped_file_is_the_generated_one_and_means_the_defaults() -> None:
    assert NODE_TOML.read_text("utf-8") == commented()
    assert load_config(NODE_TOML, {}) == Config()


def test_a_missing_file_means_the_defaults(tmp_path: Path) -> None:
    assert load_config(tmp_path / "node.toml", {}) == Config()


def test_all_faults_are_named_at_once_with_the_nearest_key() -> None:
    text = """
        [netwrk]
        [storage]
        capcity = "1 GiB"
        reserve = "some"
        [api]
        listen = "0.0.0.0:80"
        [node]
        role = "king"
    """
    with pytest.raises(ConfigError) as caught:
        parse_config(text, {"DSTORE_LOG_LEVEL": "loud"})
    faults = "\n".join(caught.value.faults)
    assert "[netwrk] (did you mean network?)" in faults
    assert "storage.capcity (did you mean capacity?)" in faults
    assert "storage.reserve: not a size" in faults
    assert "node.role" in faults
    assert "DSTORE_LOG_LEVEL" in faults
    assert len(caught.value.faults) == 5


def test_contradictions_are_faults_too() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(
            '[api]\nlisten = "0.0.0.0:80"\n[network]\nbootstrap = ["/ip4/1.2.3.4/tcp/1"]'
            '\n[pins]\nlease = "23h"',
            {},
        )
    assert [fault.split(":")[0] for fault in caught.value.faults] == [
        "api.listen",
        "network.bootstrap",
        "pins.lease",
    ]


@pytest.mark.parametrize(
    ("key", "address"),
    [
        ("listen", "/ip4/1.2.3.4/udp/1"),
        ("announce", "1.2.3.4:4180"),
        ("bootstrap", "/ip4/1.2.3.4/tcp/1/p2p/xx"),
    ],
)
def test_addresses_that_run_would_refuse_are_faults(key: str, address: str) -> None:
    with pytest.raises(ConfigError, match=f"network.{key}: "):
        parse_config(f'[network]\n{key} = ["{address}"]', {})


def test_the_environment_overrides_every_kind_of_key() -> None:
    config = parse_config(
        '[storage]\ncapacity = "1 GiB"',
        {
            "DSTORE_STORAGE_CAPACITY": "2 GiB",
            "DSTORE_NETWORK_LISTEN": "/ip4/127.0.0.1/tcp/0, /ip4/127.0.0.2/tcp/0",
            "DSTORE_NETWORK_CONNECTIONS_MAX": "99",
            "DSTORE_GATEWAY_ENABLED": "false",
            "DSTORE_HOME": "elsewhere",
        },
    )
    assert config.storage.capacity == "2 GiB"
    assert config.network.listen == ("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.2/tcp/0")
    assert config.network.connections_max == 99
    assert config.gateway.enabled is False


def test_a_fault_of_the_environment_names_its_variable() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config("", {"DSTORE_STORAGE_CAPACTY": "1 GiB", "DSTORE_STORAGE_RESERVE": "much"})
    assert [fault.split(" (")[0] for fault in caught.value.faults] == [
        "DSTORE_STORAGE_RESERVE: not a size: 'much'",
        "unknown variable DSTORE_STORAGE_CAPACTY",
    ]
    assert "did you mean DSTORE_STORAGE_CAPACITY?" in caught.value.faults[1]


def test_broken_toml_and_wrong_shapes_are_config_errors() -> None:
    with pytest.raises(ConfigError, match="is not TOML"):
        parse_config("[", {})
    with pytest.raises(ConfigError, match="node is a section"):
        parse_config("node = 3", {})


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("10 GiB", 10 << 30), ("1.5MB", 1_500_000), ("2k", 2000), ("3 tib", 3 << 40)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "-1", "1 XB", "1 GiB 2", "1e9"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


def test_what_is_beyond_all_bounds() -> None:
    for text in ("2000000 TiB", "9" * 400):
        with pytest.raises(ValueError, match="at most 1 EiB"):
            parse_size(text)
    for text in ("101y", "9" * 400 + "d"):
        with pytest.raises(ValueError, match="at most 100 years"):
            parse_duration(text)


@pytest.mark.parametrize("key", ["pins.lifetime", "pins.lease", "gateway.timeout"])
@pytest.mark.parametrize("text", ["0s", "0y", "0.9s"])
def test_no_duration_is_nothing(key: str, text: str) -> None:
    section, name = key.split(".")
    with pytest.raises(ConfigError, match=f"^{key}: too short: '{text}'"):
        parse_config(f'[{section}]\n{name} = "{text}"', {})


def test_durations_and_listen_addresses() -> None:
    assert parse_duration("30d") == 30 * 86_400
    assert parse_duration("1.5h") == 5400
    assert parse_listen("[::1]:80") == ("::1", 80)
    for bad in ("80", "host:", "host:70000", "a b:1"):
        with pytest.raises(ValueError, match="not an address"):
            parse_listen(bad)
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration("30")


@given(st.text(max_size=200))
def test_any_text_is_a_config_or_a_config_error(text: str) -> None:
    try:
        parse_config(text, {})
    except ConfigError as error:
        assert error.faults


def test_bandwidth_rates_and_periods() -> None:
    assert parse_rate("0") == math.inf
    assert parse_rate("5 MB/s") == 5_000_000
    with pytest.raises(ValueError, match="take the node for dead"):
        parse_rate("10 KB/s")
    week, night = parse_periods(["mon-fri 08:00-18:00 up=1MB/s down=5 MB/s", "22:00-6:00 up=0"])
    assert (week.days, week.start, week.end) == (frozenset(range(5)), 480, 1080)
    assert week.limits == Limits(1e6, 5e6)
    assert (len(night.days), night.limits) == (7, Limits())
    (weekend,) = parse_periods(["sat-mon 00:00-24:00 down=1MB/s"])
    assert weekend.days == {5, 6, 0}
    for wrong in ("always up=1MB/s", "8-18 up=1MB/s", "08:00-08:00 up=1MB/s", "25:00-26:00 up=0"):
        with pytest.raises(ValueError, match=r"period|hours"):
            parse_periods([wrong])


def test_peers_with_limits_of_their_own() -> None:
    one = str(PeerId.of_ed25519(bytes(32)))
    text = f'[bandwidth.peers.office]\nids = ["{one}"]\nup = "1 MB/s"\n'
    config = parse_config(text, {})
    office = node_options(config).bandwidth.groups["office"]
    assert office.peers == {PeerId.parse(one)}
    assert office.limits == Limits(up=1e6)
    assert parse_config(commented(config), {}) == config
    for wrong, fault in (
        (text + text.replace("office", "home"), "is in office and in home"),
        (text.replace("1 MB/s", "fast"), "not a size"),
        (text.replace(one, "nobody"), "peer id"),
        (text.replace("ids", "id"), "unknown"),
        (text.replace("office", '"a b"'), "match"),
    ):
        with pytest.raises(ConfigError, match=fault):
            parse_config(wrong, {})
    with pytest.raises(ConfigError, match="unknown variable"):
        parse_config("", {"DSTORE_BANDWIDTH_PEERS": "office"})


def test_groups_of_peers_by_label_and_with_hours_of_their_own() -> None:
    text = (
        '[bandwidth.peers.site]\nlabels = ["site-a", "rack 7"]\ndown = "2 MB/s"\n'
        'schedule = ["22:00-06:00 up=1MB/s"]\n'
    )
    config = parse_config(text, {})
    options = node_options(config).bandwidth
    site = options.groups["site"]
    assert options.labels == {"site": {"site-a", "rack 7"}}
    assert options.members == {"site": frozenset()}
    assert site.limits == Limits(down=2e6)
    assert [period.limits for period in site.schedule] == [Limits(up=1e6)]
    assert parse_config(commented(config), {}) == config
    for wrong, fault in (
        (text + text.replace("site]", "home]"), "is in site and in home"),
        (text.replace("site-a", ""), "a label has 1 to"),
        (text.replace("site-a", "a" * 123), "a label has 1 to"),
        ('[bandwidth.peers.site]\nup = "1 MB/s"\n', "neither ids nor labels"),
        (text.replace("22:00-06:00", "at night"), "not a period"),
        (text.replace("up=1MB/s", "repair=1MB/s"), "repair"),
        (f'[domain]\nlabel = "{"a" * 123}"\n', "domain.label"),
    ):
        with pytest.raises(ConfigError, match=fault):
            parse_config(wrong, {})


def test_bandwidth_of_the_environment_keeps_its_words_together() -> None:
    told = {"DSTORE_BANDWIDTH_SCHEDULE": "22:00-06:00 up=0, sat 08:00-9:00 up=1MB/s"}
    config = parse_config("", told)
    assert len(parse_periods(config.bandwidth.schedule)) == 2
