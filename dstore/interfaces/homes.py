"""Home directories from outside a running node: making one, and reading who it is."""

from __future__ import annotations

from pathlib import Path

from dstore.core.envelope import SigningKey
from dstore.core.peerid import PeerId
from dstore.storage.layout import Home


def create_home(directory: Path, config_text: str) -> bool:
    """Make the home with keys and its node.toml; False where it is there already, and then
    only what is missing is added.  Raises NodeError, StorageFull, StoreTooNew."""
    from dstore.runtime import Runtime
    from dstore.service.homestores import init_home

    home = Home(directory)
    made = init_home(home, Runtime())
    if not home.config.exists():
        home.write_private(home.config, config_text.encode("utf-8"))
    return made


def peer_id_of(directory: Path) -> PeerId:
    """The peer id of a home's node.  Raises NotFoundError, NodeError."""
    home = Home(directory)
    home.check()
    return SigningKey.from_seed(home.read_key(home.identity_key)).peer_id
