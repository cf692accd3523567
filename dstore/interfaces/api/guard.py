"""Who may call the local API: nobody but a program of this user that read api.json.

Every request needs the bearer token, a Host that is this server (a rebound DNS name is not),
and no Origin but this server's own (a page of another site has one).  Plain ASGI, before any
routing, so that no route can forget it.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from dstore.interfaces.forms import dump
from dstore.interfaces.http import App, Receive, Scope, Send

_SAFE = frozenset({"GET", "HEAD", "POST"})


class Guard:
    """The checks around an application.  `port` is where it is served, `token` the secret."""

    def __init__(self, app: App, port: int, token: str) -> None:
        self._app = app
        self._token = token.encode("ascii")
        hosts = ("127.0.0.1", "localhost", "[::1]")
        self._hosts = frozenset(f"{host}:{port}".encode() for host in hosts)
        self._origins = frozenset(b"http://" + host for host in self._hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope["method"], scope["headers"])
        if refusal is None:
            await self._app(scope, receive, send)
            return
        status, message = refusal
        body = dump({"error": "CallerError", "message": message, "exit_code": 2, "retry": False})
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
        ]
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body.encode()})

    def _refusal(
        self, method: str, headers: Iterable[tuple[bytes, bytes]]
    ) -> tuple[int, str] | None:
        """Status and reason of a refusal; None where the request may pass."""
        given: dict[bytes, list[bytes]] = {}
        for name, value in headers:
            given.setdefault(name.lower(), []).append(value)
        hosts = given.get(b"host", [])
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return 403, "the Host header is not this server's"
        if any(origin.lower() not in self._origins for origin in given.get(b"origin", [])):
            return 403, "requests from web pages of other origins are refused"
        if not self._authorized(given.get(b"authorization", [])):
            return 401, "the token of api.json is needed: Authorization: Bearer TOKEN"
        if method not in _SAFE:
            return 405, f"{method} is not used here"
        return None

    def _authorized(self, values: list[bytes]) -> bool:
        if len(values) != 1:
            return False
        scheme, _, token = values[0].partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token)
