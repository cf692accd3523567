"""Imports of libp2p that load what is used: the initialisers of its packages wait.

`import libp2p.peer.id` runs `libp2p/__init__.py`, which loads every transport, QUIC and an
HTTP client among them: 0.4 s and some 30 MiB that no part of dstore uses.  Here the packages
below are entered without their initialiser; it runs as soon as somebody asks the package
for a name, so for other users of libp2p nothing is missing (py-libp2p 0.8.1 has no such
loading of its own).  It changes when libp2p's code runs, never what it does; but for two classes
that a module wants as names of types only, and does not get.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Final

# Packages on the way to what we import whose initialisers load more than themselves, and RSA,
# which a peer with such a key wakes.
_DEFERRED: Final = frozenset(
    {
        "Crypto.Hash.SHA256",
        "Crypto.PublicKey.RSA",
        "Crypto.Signature.pkcs1_15",
        "libp2p",
        "libp2p.crypto",
        "libp2p.identity",
        "libp2p.identity.identify",
        "libp2p.io",
        "libp2p.peer",
        "libp2p.pubsub",
        "libp2p.security",
        "libp2p.security.noise",
        "libp2p.stream_muxer",
        "libp2p.tools",
        "libp2p.transport",
        "libp2p.transport.quic",
        "libp2p.transport.quic.stream",
        "multiaddr.resolvers",
    }
)
# Who takes a class from which module for the name of a type, and never looks at it.
_NAMED_ONLY: Final = frozenset(
    {
        ("libp2p.crypto.rsa", "Crypto.PublicKey.RSA", "RsaKey"),
        ("libp2p.custom_types", "libp2p.transport.quic.stream", "QUICStream"),
    }
)
# Names between underscores that a package may define; the others are looked for by tools
# that walk over all modules, and are no wish for its contents.
_DEFINED: Final = frozenset({"__all__", "__version__"})


class _Deferred(ModuleType):
    """A package whose initialiser has not run."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__") and name not in _DEFINED:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if (sys._getframe(1).f_globals["__name__"], self.__name__, name) in _NAMED_ONLY:
            return object
        loader = self.__loader__
        assert isinstance(loader, _Later)
        self.__class__ = ModuleType  # type: ignore[assignment]  # from here on an ordinary one
        loader.inner.exec_module(self)
        return getattr(self, name)


class _Later(Loader):
    """Makes the module and leaves its code for later."""

    def __init__(self, inner: Loader) -> None:
        self.inner = inner

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Deferred(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        return


class _Finder(MetaPathFinder):
    """Finds the packages of the list; everything else is left to the usual finders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _DEFERRED:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Later(spec.loader)
        return spec


def install() -> None:
    """From here on; packages that are loaded already stay as they are."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
