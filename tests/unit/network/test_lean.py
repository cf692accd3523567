"""What loading dstore loads of libp2p, and that the rest of libp2p is there when asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Each comes with libp2p's own initialisers, weighs megabytes, and is nothing dstore uses.
_UNUSED = (
    "aioquic",
    "Crypto.Util._raw_api",
    "Crypto.Math.Numbers",
    "dns",
    "httpx",
    "requests",
    "libp2p.host",
    "libp2p.kad_dht",
    "libp2p.relay",
    "libp2p.security.tls",
    "libp2p.transport.tcp",
    "libp2p.transport.websocket",
)


def _run(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_daemon_loads_no_transport_that_it_does_not_use() -> None:
    script = (
        "import sys, dstore.interfaces.daemon\n"
        f"print([name for name in {_UNUSED} if name in sys.modules])"
    )
    assert _run(script) == "[]"


def test_addresses_of_joining_nodes_wake_no_codec_of_the_multiaddr_library() -> None:
    """Its first address of an IP loads 0.02 s of tables about hardware addresses."""
    script = (
        "import sys\n"
        "from dstore.core.kad_messages import KadMessage, KadPeer, MessageType, decode_message\n"
        "from dstore.core.kad_messages import encode_message\n"
        "from dstore.core.peerid import PeerId\n"
        "addresses = ('/ip4/10.0.0.1/tcp/1', '/ip6/::1/tcp/2', '/dns4/node.example/tcp/3')\n"
        "peer = KadPeer(PeerId.of_ed25519(bytes(32)), addresses)\n"
        "message = KadMessage(MessageType.FIND_NODE, b'k', (peer,))\n"
        "assert decode_message(encode_message(message)) == message\n"
        "print([name for name in ('netaddr', 'multiaddr.codecs.ip4') if name in sys.modules])"
    )
    assert _run(script) == "[]"


@pytest.mark.parametrize(
    "wish",
    [
        "from libp2p import new_host",
        "import libp2p; libp2p.new_host",
        "import libp2p; assert libp2p.__version__",
        "from libp2p.kad_dht.kad_dht import KadDHT",
        "from libp2p.transport import TransportUpgrader",
        "from libp2p.security.tls.transport import TLSTransport",
        "from libp2p.host.basic_host import BasicHost",
        "from libp2p.transport.quic.stream import QUICStream; QUICStream.write",
        "from libp2p.crypto import rsa; rsa.create_new_key_pair(1024).public_key.to_bytes()",
        "from Crypto.PublicKey.RSA import RsaKey; RsaKey.public_key",
    ],
)
def test_other_users_of_libp2p_miss_nothing(wish: str) -> None:
    assert _run(f"import dstore.network.host\n{wish}\nprint('there')") == "there"


def test_libp2p_that_is_loaded_already_stays_as_it_is() -> None:
    script = (
        "import libp2p\n"
        "before = vars(libp2p).copy()\n"
        "import dstore.network.host, libp2p as after\n"
        "print(after is libp2p, before.items() <= vars(after).items())"
    )
    assert _run(script) == "True True"


def test_tools_that_look_at_every_module_load_nothing() -> None:
    script = (
        "import sys, dstore.network.host\n"
        "for module in list(sys.modules.values()):\n"
        "    getattr(module, '__wrapped__', None), getattr(module, '__file__', None)\n"
        "print('libp2p.host' in sys.modules)"
    )
    assert _run(script) == "False"
