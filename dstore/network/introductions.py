"""Who this node says it is, and who its peers say they are.

Peers that know how say it within the handshake (decision 0022), the others when they are
asked, and everybody again when something changes.  The messages are `identify.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import trio
from libp2p.abc import IRawConnection

from dstore.errors import DeadlineExceeded, ProtocolViolation
from dstore.limits import IDENTIFY_BYTES_MAX, REQUEST_SECONDS
from dstore.network.connection import Connection, HostStream
from dstore.network.identify import IDENTIFY, claims_of, describe, observation, read
from dstore.network.streams import BufferedReader, Stream, frame
from dstore.network.tcp import TcpConnection


class Introductions:
    """Of one node."""

    def __init__(
        self,
        seed: bytes,
        *,
        agent: str,
        sequence: int,
        protocols: Iterable[str],
        addresses: Callable[[], Sequence[str]],
        heard_who: Callable[[Connection], None],
    ) -> None:
        """`protocols` and `addresses` are looked at whenever somebody is told of them.
        `heard_who` is told of each connection whose peer has said who it is, when asked or
        unasked."""
        self._seed = seed
        self._agent = agent
        self._sequence = sequence
        self._protocols = protocols
        self._addresses = addresses
        self._heard_who = heard_who

    def in_handshake(self, raw: IRawConnection) -> bytes:
        """What is said of this node within the handshake on `raw`."""
        assert isinstance(raw, TcpConnection)
        return self._claims() + observation(raw.remote)

    def _claims(self) -> bytes:
        return claims_of(self._agent, tuple(self._protocols), tuple(self._addresses()))

    def outdated(self, connection: Connection) -> bool:
        """Whether what the handshake said has changed since."""
        said = connection.said
        return bool(said) and not said.startswith(self._claims())

    async def serve(self, stream: Stream) -> None:
        """Say who this node is, to a peer that asks or that is to know of changes."""
        assert isinstance(stream, HostStream)
        message = describe(
            self._seed,
            agent=self._agent,
            protocols=self._protocols,
            addresses=self._addresses(),
            observed=stream.connection.remote,
            sequence=self._sequence,
        )
        with trio.move_on_after(REQUEST_SECONDS):
            await stream.write(frame(message))

    async def ask(self, connection: Connection) -> None:
        """Ask the peer of a connection.  Raises ProtocolViolation, ConnectionLost,
        DeadlineExceeded."""
        stream = await connection.open_stream()
        try:
            # Which protocol it is to be is all that this side has to say.
            await stream.propose_ahead(IDENTIFY)
            await stream.close_write()
            await self.take(stream)
        finally:
            with trio.CancelScope(shield=True):
                await stream.reset()

    async def take(self, stream: Stream) -> None:
        """Hear from the peer of `stream` who it is.  Raises as `ask`."""
        assert isinstance(stream, HostStream)
        connection = stream.connection
        try:
            with trio.fail_after(REQUEST_SECONDS):
                message = await BufferedReader(stream).read_message(IDENTIFY_BYTES_MAX)
        except trio.TooSlowError as error:
            raise DeadlineExceeded(f"{connection.peer} did not identify itself") from error
        if message is None:
            raise ProtocolViolation(f"{connection.peer} sent no identify message")
        connection.learn(read(message, connection.peer, connection.remote))
        self._heard_who(connection)
