"""dstore: erasure-coded, self-healing, content-addressed storage on libp2p.

For programs: `async with dstore.open_node(directory, dstore.NodeOptions()) as node: …`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dstore.service.node import Node, NodeOptions, open_node
    from dstore.service.progress import AddOptions, AddResult

__version__ = "0.1.0"

__all__ = ["AddOptions", "AddResult", "Node", "NodeOptions", "__version__", "open_node"]

_HOMES = {
    "AddOptions": "dstore.service.progress",
    "AddResult": "dstore.service.progress",
    "Node": "dstore.service.node",
    "NodeOptions": "dstore.service.node",
    "open_node": "dstore.service.node",
}


def __getattr__(name: str) -> object:
    """Import on first use: the command line must not pay for trio and libp2p."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
