"""Connections, streams, the DHT and the fragment protocol.  Only this layer knows libp2p."""

from dstore.network.lean import install

install()
