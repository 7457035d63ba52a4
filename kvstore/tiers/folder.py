"""The disk tier's folder: who holds it, and the names of the namespaces whose blocks lie in it.

    lock                  flock'd by the daemon; its process id in text
    manifest.mdb          the index, LMDB in one file; rebuilt from the segments when lost
    manifest.bad-N        an index that was set aside
    namespaces/HEX        tenant and layout of one namespace; small, written once, not rebuildable
    segment-NNNNNN        slots

No name in here comes from a user. Called at start and stop, and by the manifest.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from typing import NamedTuple

import xxhash

from kvstore.core.errors import FolderInUse, OperatorError, TierFault

_NAMESPACE_MAGIC = b"KVNSPCE\x1a"
_NAMESPACE = struct.Struct("<8sHII32s")
_VERSION = 1


class SavedNamespace(NamedTuple):
    """A namespace that was opened once. `layout` is opaque here."""

    namespace: bytes  # 32 bytes
    tenant: str
    layout: bytes


def make_folder(folder: Path) -> None:
    """Make the folder, for its owner only, where it is missing. OperatorError if it cannot be written."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "namespaces").mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise _unusable(folder, error) from error


def lock_folder(folder: Path, *, create: bool = True) -> int:
    """Descriptor that holds the folder until it is closed. FolderInUse, OperatorError."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
    try:
        fd = os.open(folder / "lock", flags, 0o600)
    except OSError as error:
        raise _unusable(folder, error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.pwrite(fd, f"{os.getpid():<20}\n".encode(), 0)
    except BlockingIOError:
        holder = os.pread(fd, 20, 0).decode(errors="replace").strip()
        os.close(fd)
        who = f"process {holder}" if holder.isdecimal() else "another process"
        raise FolderInUse(f"disk folder {folder} is held by {who}: stop it or choose another folder") from None
    except OSError as error:
        os.close(fd)
        raise _unusable(folder, error) from error
    return fd


def save_namespace(folder: Path, saved: SavedNamespace) -> None:
    """Write one namespace durably. TierFault."""
    tenant = saved.tenant.encode()
    body = _NAMESPACE.pack(_NAMESPACE_MAGIC, _VERSION, len(tenant), len(saved.layout), saved.namespace)
    body += tenant + saved.layout
    path = folder / "namespaces" / saved.namespace.hex()
    partial = path.with_suffix(".new")
    try:
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(fd, "wb") as file:
            file.write(body + xxhash.xxh3_128_digest(body))
            file.flush()
            os.fsync(fd)
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        raise TierFault(f"cannot save a namespace in {path.parent}: {error.strerror}") from error


def load_namespaces(folder: Path) -> tuple[list[SavedNamespace], list[str]]:
    """What `save_namespace` wrote, and a sentence for each file that cannot be read or does not verify."""
    found, problems = [], []
    for path in sorted((folder / "namespaces").glob("*")):
        if path.suffix:  # a write that a crash cut off
            continue
        try:
            saved = _unpack_namespace(path.read_bytes())
        except OSError:
            saved = None
        if saved is None or saved.namespace.hex() != path.name:
            problems.append(f"namespace {path.name[:8]} does not verify: it is known again when a worker opens it")
        else:
            found.append(saved)
    return found, problems


def sync_folder(folder: Path) -> None:
    """Make names in a folder durable. OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _unpack_namespace(data: bytes) -> SavedNamespace | None:
    body, checksum = data[:-16], data[-16:]
    if len(body) < _NAMESPACE.size or xxhash.xxh3_128_digest(body) != checksum:
        return None
    magic, version, tenant_bytes, layout_bytes, namespace = _NAMESPACE.unpack_from(body)
    tenant_end = _NAMESPACE.size + tenant_bytes
    if magic != _NAMESPACE_MAGIC or version != _VERSION or tenant_end + layout_bytes != len(body):
        return None
    return SavedNamespace(namespace, body[_NAMESPACE.size : tenant_end].decode(), body[tenant_end:])


def _unusable(folder: Path, error: OSError) -> OperatorError:
    return OperatorError(
        f"disk folder {folder} cannot be used: {error.strerror}; make it writable for this user or choose another"
    )
