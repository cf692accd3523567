"""dstore: erasure-coded, self-healing, content-addressed storage on libp2p."""

__version__ = "0.1.0"
