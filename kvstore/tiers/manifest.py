"""The disk tier's index: which object lies at which page, in LMDB, one durable transaction per commit.

Index only, and rebuildable: losing it costs a scan of the segments. The daemon writes only a file that it made
itself: at start the old one is read by a child process (`manifest_child.py`) and a new one, with the entries that
verified, takes its place in one rename. So nothing that a crash or a flipped bit left in the old file can bring
the daemon down later. Any thread; LMDB has one writer at a time, and growing the map must have none.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import lmdb

from kvstore.core.errors import TierFault
from kvstore.core.keys import BlockKey
from kvstore.tiers.folder import SavedNamespace, save_namespace, sync_folder
from kvstore.tiers.manifest_record import ManifestEntry, pack_entry, pack_generation, pack_key, pack_used

FILE_NAME = "manifest.mdb"
MAP_BYTES = 256 << 20  # address space, not disk; doubled when full
NEXT_GENERATION = b"next_generation"  # in `meta`: u64, checksummed like `used`


class Manifest:
    """An open manifest, written by this process alone. Reading happens at start, in a child process."""

    def __init__(self, folder: Path, environment: lmdb.Environment, next_generation: int) -> None:
        self._folder = folder
        self._environment = environment
        self._next_generation = next_generation
        self._entries = environment.open_db(b"entries")
        self._used = environment.open_db(b"used")
        self._meta = environment.open_db(b"meta")
        self._writing = threading.Lock()  # a leaf: nothing else is taken under it
        self._broken: str | None = None

    @classmethod
    def create(
        cls, folder: Path, entries: Iterable[ManifestEntry], next_generation: int, map_bytes: int = MAP_BYTES
    ) -> Manifest:
        """A new manifest that holds `entries`, in the place of the one in the folder, if any. TierFault."""
        path = folder / (FILE_NAME + ".new")
        try:
            path.unlink(missing_ok=True)
            # our own lock on the folder keeps other processes out, and nothing here reads while it writes
            environment = lmdb.open(
                str(path), map_size=map_bytes, subdir=False, lock=False, mode=0o600, max_dbs=3, readahead=False
            )
            manifest = cls(folder, environment, next_generation)
            manifest.commit(list(entries), [])
            os.replace(path, folder / FILE_NAME)
            sync_folder(folder)
        except (lmdb.Error, OSError) as error:
            raise TierFault(f"cannot write the manifest in {folder}: {error}") from error
        return manifest

    @property
    def next_generation(self) -> int:
        """No generation from here on was ever committed, not even one that was dropped again."""
        return self._next_generation

    @property
    def is_broken(self) -> bool:
        """A commit failed in a way after which this file can take no more."""
        return self._broken is not None

    def commit(self, put: Sequence[ManifestEntry], drop: Sequence[BlockKey]) -> None:
        """Drop, then put, all or nothing, durable when it returns. TierFault, and then nothing has changed."""
        keys = [pack_key(key) for key in drop]
        packed = sorted([(*pack_entry(entry), entry.last_used) for entry in put])  # LMDB fills pages in key order
        next_generation = max((entry.generation + 1 for entry in put), default=0)

        def write(transaction: lmdb.Transaction) -> None:
            for key in keys:
                transaction.delete(key, db=self._entries)
                transaction.delete(key, db=self._used)
            transaction.cursor(self._entries).putmulti([(key, value) for key, value, _ in packed])
            transaction.cursor(self._used).putmulti([(key, pack_used(key, when)) for key, _, when in packed])
            mark = max(next_generation, self._next_generation)
            transaction.put(NEXT_GENERATION, pack_generation(mark), db=self._meta)

        self._write(write)
        with self._writing:
            self._next_generation = max(next_generation, self._next_generation)

    def touch(self, used: Mapping[BlockKey, float]) -> None:
        """Record when objects were last used (unix seconds). Objects that are not in the manifest are passed over."""
        stamps = sorted((pack_key(key), when) for key, when in used.items())

        def write(transaction: lmdb.Transaction) -> None:
            for key, when in stamps:
                if transaction.get(key, db=self._entries) is not None:
                    transaction.put(key, pack_used(key, when), db=self._used)

        self._write(write)

    def save_namespace(self, namespace: bytes, tenant: str, layout_blob: bytes) -> None:
        """Keep what a namespace is, durably. Beside the index, because no rebuild could bring it back. TierFault."""
        save_namespace(self._folder, SavedNamespace(namespace, tenant, layout_blob))

    def close(self) -> None:
        with self._writing:
            self._environment.close()

    def _write(self, write: Callable[[lmdb.Transaction], None]) -> None:
        with self._writing:
            if self._broken is not None:
                raise TierFault(f"the manifest in {self._folder} is out of use ({self._broken}): check the device")
            try:
                while not self._fits(write):
                    self._environment.set_mapsize(2 * self._environment.info()["map_size"])
            except lmdb.DiskError as error:  # ENOSPC: the transaction is gone, the file as it was
                raise TierFault(f"the manifest in {self._folder} cannot grow: free space on the device") from error
            except (lmdb.Error, OSError) as error:
                # after a failed sync nobody knows what is on the device, and a second try would report success
                self._broken = str(error)
                raise TierFault(f"cannot write the manifest in {self._folder}: {error}") from error

    def _fits(self, write: Callable[[lmdb.Transaction], None]) -> bool:
        try:
            with self._environment.begin(write=True) as transaction:
                write(transaction)
        except lmdb.MapFullError:
            return False
        return True
