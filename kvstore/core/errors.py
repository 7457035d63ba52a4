"""Every exception of kvstore, in one tree, grouped by who should act.

A miss, a full tier and a refused admission are ordinary values and are not here.

    KVStoreError
    ├── InvalidInput            the caller: the message names the fact and the remedy
    │   ├── InvalidLayout           a model layout that contradicts itself
    │   ├── ConfigError             a config key, flag or size
    │   └── TraceError              a trace: the message names the file, the line and the remedy
    ├── LayoutMismatch          the caller: the store holds another layout; the message names the field
    ├── HelloAgain              the client: its session is another daemon's; it says Hello and tries once more
    │   ├── UnknownNamespace        nobody said Hello with that layout since the daemon started
    │   └── OtherBootEpoch          the lease or reservation is from before a restart
    ├── StoreUnavailable        nobody in the worker: the client turns it into a miss
    ├── CorruptFrame            the store: drops the copy and answers with a miss
    └── OperatorError           the operator: the daemon cannot start or go on as asked
        ├── FolderInUse             another daemon holds the folder
        ├── SocketInUse             another daemon listens there
        ├── MissingSecret           segments are there, the secret that names them is not
        └── TierFault               a device refused a read or a write
"""

from __future__ import annotations


class KVStoreError(Exception):
    """Root of the tree; catch it to catch everything of ours."""


class InvalidInput(KVStoreError, ValueError):
    """The caller passed something that cannot be right. Nothing was changed."""


class InvalidLayout(InvalidInput):
    """A model layout contradicts itself."""


class ConfigError(InvalidInput):
    """A config key, flag or size is unknown or out of range."""


class TraceError(InvalidInput):
    """A trace cannot be read or cut as asked: "path:LINE: fact; remedy"."""


class LayoutMismatch(KVStoreError):
    """Two sides describe the same model differently. The message names the differing fields."""


class HelloAgain(KVStoreError):
    """The caller's session does not belong to this run of the daemon."""


class UnknownNamespace(HelloAgain):
    """The namespace was not opened since the daemon started."""


class OtherBootEpoch(HelloAgain):
    """The lease or reservation was given by another run of the daemon."""


class StoreUnavailable(KVStoreError):
    """The daemon is away, slow or shedding. Inside the client only: workers see a shorter match."""


class CorruptFrame(KVStoreError):
    """Stored bytes fail a check. The store drops the copy and answers with a miss."""


class OperatorError(KVStoreError):
    """The daemon cannot start or go on as asked; an operator has to act."""


class FolderInUse(OperatorError):
    """Another daemon holds the disk folder."""


class SocketInUse(OperatorError):
    """Another daemon listens on the address."""


class MissingSecret(OperatorError):
    """The disk holds segments, but the secret that names their blocks is gone."""


class TierFault(OperatorError):
    """A device refused a read or a write."""
