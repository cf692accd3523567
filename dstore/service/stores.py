"""The two stores of a node, as the services take them."""

from __future__ import annotations

from dataclasses import dataclass

from dstore.storage.blockstore import BlockStore
from dstore.storage.catalog import Catalog


@dataclass(frozen=True)
class Stores:
    """Blocks, and what is known about them."""

    blocks: BlockStore
    catalog: Catalog
