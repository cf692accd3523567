"""A directory as a web page: plain HTML without scripts, readable in light and dark.

Names come from strangers: each is percent-encoded in its link and escaped in its text, and
the page's Content-Security-Policy lets nothing run whatever the names say.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from typing import Final

from dstore.core.cid import CID
from dstore.interfaces.gateway.request import path_of, quote_name
from dstore.interfaces.text import escape_controls, in_bytes
from dstore.service.progress import DirectoryEntry

_STYLE: Final = """
:root { color-scheme: light dark; --quiet: #5f6772; --line: #d8dce1; --link: #0b57d0; }
@media (prefers-color-scheme: dark) {
  :root { --quiet: #9aa4b0; --line: #363c44; --link: #8ab4f8; }
  body { background: #16181c; color: #e6e8eb; }
}
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto;
  padding: 1.5rem 1rem 3rem; }
a { color: var(--link); text-decoration: none; overflow-wrap: anywhere; }
a:hover, a:focus { text-decoration: underline; }
h1 { font-size: 1.15rem; font-weight: 600; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h1 .cid { font-family: ui-monospace, monospace; font-size: .95em; }
p { color: var(--quiet); font-size: .875rem; margin: 0 0 1rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; font-size: .8rem; font-weight: 600; color: var(--quiet); }
th, td { padding: .35rem .5rem; border-bottom: 1px solid var(--line); vertical-align: top; }
.size { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.block { font-family: ui-monospace, monospace; font-size: .85rem; white-space: nowrap; }
.block a { color: var(--quiet); }
@media (max-width: 40rem) { .block { display: none; } }
"""
_STYLE_HASH: Final = b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

SECURITY_POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


def render_listing(
    root: CID, names: tuple[str, ...], cid: CID, entries: Sequence[DirectoryEntry], *, more: bool
) -> bytes:
    """The page of the directory `cid` at `names` below `root`; `more` says that it has more
    entries than these."""
    title = escape(_shown("/".join((str(root), *names))))
    rows = [_row(entry) for entry in sorted(entries, key=_order)]
    count = f"{len(rows):,} {'entry' if len(rows) == 1 else 'entries'}"
    if more:
        count = f"The first {count}; <code>dstore ls {cid}</code> lists all"
    head = "<tr><th>Name</th><th class=block>CID</th><th class=size>Size</th></tr>"
    table = f"<table>\n<thead>{head}</thead>\n<tbody>\n{''.join(rows)}</tbody>\n</table>\n"
    page = (
        "<!DOCTYPE html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>/ipfs/{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{_breadcrumbs(root, names)}</h1>\n"
        f"<p>{count}. Sizes include what holds a file's pieces together.</p>\n"
        f"{table if rows else '<p>This directory is empty.</p>'}"
        "</body>\n</html>\n"
    )
    return page.encode()


def _breadcrumbs(root: CID, names: tuple[str, ...]) -> str:
    shown = [f"<span class=cid>{root}</span>", *(escape(_shown(name)) for name in names)]
    links = [
        f'<a href="{path_of(root, names[:depth])}/">{text}</a>'
        for depth, text in enumerate(shown[:-1])
    ]
    return " / ".join((*links, shown[-1]))


def _row(entry: DirectoryEntry) -> str:
    # An absolute path would need the directory's own; "./" keeps a colon from being a scheme.
    name, cid = quote_name(entry.name), str(entry.cid)
    by_cid = f"/ipfs/{cid}?filename={name}"
    return (
        f'<tr><td><a href="./{name}">{escape(_shown(entry.name))}</a></td>'
        f'<td class=block><a href="{by_cid}" title="{cid}">{cid[:6]}…{cid[-6:]}</a></td>'
        f'<td class=size title="{entry.tsize:,} bytes">{in_bytes(entry.tsize)}</td></tr>\n'
    )


def _shown(name: str) -> str:
    return escape_controls(name)


def _order(entry: DirectoryEntry) -> tuple[str, bytes]:
    """By name as people look for it: upper and lower case together."""
    return entry.name.casefold(), entry.name.encode("utf-8", "surrogateescape")
