"""A node that lies: it serves every block of 32 KiB and more with one bit turned.

    python -m benchmarks.liar HOME

For benchmarks of how readers fare: it is the whole daemon, whose store hands out damaged
bytes unchecked.  Prints one line when it is ready.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from dstore.core.cid import CID
from dstore.interfaces.cli.main import main
from dstore.limits import SMALL_BLOCK_BYTES
from dstore.storage.diskstore import DiskStore


def damaged(honest: Callable[[DiskStore, CID], bytes]) -> Callable[[DiskStore, CID], bytes]:
    """`honest`, but for one bit in what it reads."""

    def get(store: DiskStore, cid: CID) -> bytes:
        data = honest(store, cid)
        if len(data) < SMALL_BLOCK_BYTES:
            return data
        return bytes([data[0] ^ 1]) + data[1:]

    return get


if __name__ == "__main__":
    setattr(DiskStore, "get", damaged(DiskStore.get))  # noqa: B010
    sys.argv = ["dstore", "run", "--home", sys.argv[1], "--json"]
    main()
