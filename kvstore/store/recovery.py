"""Start from what a disk folder holds: namespaces by name, objects parents first, with their recency.

Trusts nothing: an object comes back only if its namespace, parent, lineage, length and slot fit; its bytes are
verified when they are read. What does not fit is forgotten.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from kvstore.core.errors import InvalidLayout, OperatorError
from kvstore.core.fingerprint import fingerprint
from kvstore.core.index import Facts, ObjectClass
from kvstore.core.keys import BlockKey, Tier
from kvstore.core.layout import ModelLayout
from kvstore.core.layout_json import load_layout
from kvstore.core.planner import Planner
from kvstore.core.prefix import namespace_id
from kvstore.tiers.disk import DiskTier
from kvstore.tiers.folder import sync_folder
from kvstore.tiers.manifest_record import ManifestEntry

SECRET_ID_FILE = "secret.id"
LONGEST_UNUSED_SECONDS = 30 * 86400.0  # a clock that jumped must not make objects older than this, or young


class RestoredNamespace(NamedTuple):
    tenant: str
    layout: ModelLayout


class Recovery(NamedTuple):
    restored: int
    forgotten: list[BlockKey]  # entries of the manifest that did not fit
    problems: list[str]


def check_secret(folder: Path, secret: bytes) -> None:
    """Refuse a folder that was written under another secret: its blocks could never be found, only lost."""
    path, name = folder / SECRET_ID_FILE, secret_id(secret)
    try:
        known = path.read_bytes().decode("ascii", "replace").strip() if path.exists() else ""
        if re.fullmatch("[0-9a-f]{16}", known) is None:  # a first start, or its name was cut off or damaged
            known = name
            _write_name(path, name)
    except OSError as error:
        raise OperatorError(
            f"disk folder {folder} cannot be used: {error.strerror}; make it writable for this user or choose another"
        ) from error
    if known != name:
        raise OperatorError(
            f"disk folder {folder} was written under secret {known[:16]}, the daemon was given {name}: "
            "give it that secret, or an empty folder"
        )


def _write_name(path: Path, name: str) -> None:
    """Whole or not at all: a start that is killed here must not keep the next one from starting."""
    partial = path.with_suffix(".new")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(name + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync_folder(path.parent)


def secret_id(secret: bytes) -> str:
    """Public name of a secret, 16 hex digits."""
    return hashlib.sha256(b"kvstore secret id 1" + secret).hexdigest()[:16]


def restore(
    planner: Planner,
    disk: DiskTier,
    open_namespace: Callable[[str, ModelLayout], object],
    now: float,
    wall_now: float,
) -> Recovery:
    """Fill an empty planner from the disk. `now` and `wall_now` are the same moment on both clocks, in seconds."""
    problems = list(disk.recovered.problems)
    for saved in disk.recovered.namespaces:
        try:
            layout = load_layout(saved.layout)
        except InvalidLayout as error:
            problems.append(f"namespace {saved.namespace[:4].hex()} is set aside: {error}")
            continue
        if namespace_id(saved.tenant, fingerprint(layout)) != saved.namespace:
            problems.append(f"namespace {saved.namespace[:4].hex()} is set aside: its layout has another fingerprint")
            continue
        open_namespace(saved.tenant, layout)
    restored, forgotten = 0, list[BlockKey]()
    for entry in disk.recovered.entries:
        unused = min(max(wall_now - entry.last_used, 0.0), LONGEST_UNUSED_SECONDS)
        is_known = entry.namespace in planner.namespaces
        if is_known and planner.restore(_facts(entry), entry.page, entry.frame_bytes, now - unused):
            restored += 1
        else:
            forgotten.append(entry.key)
    for segment, slot_pages in disk.recovered.slot_pages.items():
        planner.spaces[Tier.DISK].remember_cut(segment, slot_pages)
    return Recovery(restored, forgotten, problems)


def _facts(entry: ManifestEntry) -> Facts:
    return Facts(
        key=entry.key,
        namespace=entry.namespace,
        parent=entry.parent,
        block=entry.block,
        generation=entry.generation,
        lineage=entry.lineage,
        parent_lineage=entry.parent_lineage,
        content=entry.content,
        raw_bytes=entry.raw_bytes,
        written_at=entry.written_at,
        writer=entry.writer,
        object_class=ObjectClass(entry.object_class),
        ttl_seconds=entry.ttl_seconds,
    )
