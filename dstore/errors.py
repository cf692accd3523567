"""Every exception that dstore raises on purpose, in one tree.

The first split says whose fault it is, and so what the program that catches it
should do.  `exit_code` is what the command line returns, `http_status` what the
gateway and the API answer, `retry` whether trying the same thing again may help.

    DstoreError
    ├── CallerError            the request is wrong; do not retry        exit 2  400
    │   ├── InvalidCid         not a CID, or one that dstore refuses
    │   ├── InvalidPath        a path that leaves its root, or is malformed
    │   └── ConfigError        one or more faults in the configuration
    ├── NotFoundError          nobody's fault: it is not there           exit 3  404
    ├── PeerError              a peer broke a rule; use another          exit 4  502
    │   ├── ProtocolViolation  malformed, oversized or out of turn
    │   ├── HashMismatch       bytes that are not what their CID says
    │   └── Refused            the peer said no, with a reason
    ├── NetworkError           nobody answered; try again                exit 4  504
    │   ├── Unreachable        no connection could be made
    │   ├── ConnectionLost     a connection or stream ended under us
    │   ├── DeadlineExceeded   no answer in time
    │   └── InsufficientPeers  too few peers for what was required      exit 4  503
    ├── DataError              the data itself is bad, whoever sent it   exit 4  502
    │   ├── MalformedBlock     bytes that do not decode as what they claim
    │   ├── BudgetExceeded     a DAG deeper, wider or larger than allowed
    │   └── Unrecoverable      fewer fragments than any decoder needs    exit 4  504
    └── NodeError              this node's fault                         exit 1  500
        ├── StorageFull        quota, reserve or disk reached                    507
        ├── CorruptStore       what is on disk is not what was written
        ├── StoreTooNew        written by a newer dstore
        └── AlreadyRunning     another process holds this home directory

Messages say what happened, to what, and what to do about it.
"""

from __future__ import annotations

from typing import ClassVar


class DstoreError(Exception):
    """The root of the tree; never raised itself."""

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    retry: ClassVar[bool] = False


class CallerError(DstoreError):
    """The request cannot be served as it stands."""

    exit_code = 2
    http_status = 400


class InvalidCid(CallerError):
    """Not a CID, or one whose version, hash or length dstore refuses."""


class InvalidPath(CallerError):
    """A path that is malformed or would leave the place it belongs to."""


class ConfigError(CallerError):
    """One or more faults in the configuration; `faults` lists them all."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class NotFoundError(DstoreError):
    """What was asked for does not exist, as far as this node can tell."""

    exit_code = 3
    http_status = 404


class PeerError(DstoreError):
    """A peer broke a rule of a protocol; another peer may do better."""

    exit_code = 4
    http_status = 502
    retry = True


class ProtocolViolation(PeerError):
    """A message that is malformed, oversized or out of turn."""


class HashMismatch(PeerError):
    """Bytes whose hash is not the one their CID names."""


class Refused(PeerError):
    """The peer answered no; `reason` is its word for it (a `wire.Refusal` name)."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class NetworkError(DstoreError):
    """No answer could be had; trying again may help."""

    exit_code = 4
    http_status = 504
    retry = True


class Unreachable(NetworkError):
    """No connection to the peer could be made."""


class ConnectionLost(NetworkError):
    """The connection or stream ended before the exchange did."""


class DeadlineExceeded(NetworkError):
    """The answer did not come in time."""


class InsufficientPeers(NetworkError):
    """Fewer peers or failure domains than what was asked for needs."""

    http_status = 503


class DataError(DstoreError):
    """The data is bad, whoever sent it."""

    exit_code = 4
    http_status = 502


class MalformedBlock(DataError):
    """Bytes that do not decode as what they claim to be."""


class BudgetExceeded(DataError):
    """A DAG deeper, wider or larger than its reader allows."""


class Unrecoverable(DataError):
    """Fewer fragments can be had than the stripe needs."""

    http_status = 504
    retry = True


class NodeError(DstoreError):
    """Something is wrong with this node."""


class StorageFull(NodeError):
    """The quota, the reserve or the disk is reached."""

    http_status = 507


class CorruptStore(NodeError):
    """What is on disk is not what was written."""


class StoreTooNew(NodeError):
    """The directory was written by a newer dstore than this one."""


class AlreadyRunning(NodeError):
    """Another process holds this home directory."""
