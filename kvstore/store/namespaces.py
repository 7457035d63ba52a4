"""Namespaces: opened by Hello, named in the disk folder, so that a restart finds what they hold."""

from __future__ import annotations

import threading

from kvstore.core.errors import LayoutMismatch, TierFault
from kvstore.core.fingerprint import fingerprint, nearest_differing
from kvstore.core.keys import Tier
from kvstore.core.layout import ModelLayout
from kvstore.core.layout_json import dump_layout
from kvstore.core.prefix import namespace_id, namespace_root
from kvstore.store.kept import Kept
from kvstore.store.mover import Described
from kvstore.store.objects import OpenedNamespace
from kvstore.store.recovery import RestoredNamespace


class Namespaces:
    """Any thread."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        self._naming = threading.Lock()  # one writer of names at a time; taken before the store's, held across its I/O

    def hello(self, tenant: str, layout: ModelLayout, existing_only: bool = False) -> OpenedNamespace:
        """Open the namespace of a layout, or find it. LayoutMismatch names the fields where only near misses exist."""
        mark = fingerprint(layout)
        name = namespace_id(tenant, mark)
        with self._kept.lock:
            is_known = name in self._kept.namespaces
            others = [other.layout for other in self._kept.namespaces.values() if other.tenant == tenant]
        nearest, _ = nearest_differing(layout, [one for one in others if one.model == layout.model and one != layout])
        if not is_known:
            if existing_only and nearest:
                raise LayoutMismatch(
                    f"layout mismatch: the store knows {layout.model} with other values of {', '.join(nearest)}; "
                    "make the layouts equal, or open a namespace of its own"
                )
            with self._kept.lock:
                self.open(tenant, layout)
                if self._kept.disk is not None:
                    self._kept.unnamed[name] = None
            self.save_names()
        root = namespace_root(self._kept.config.secret, tenant, mark)
        return OpenedNamespace(name, root, layout, not is_known, nearest)

    def find(self, id: bytes) -> OpenedNamespace | None:
        with self._kept.lock:
            known = self._kept.namespaces.get(id)
            if known is None:
                return None
            root = self._kept.planner.namespaces[id].root.prefix
            return OpenedNamespace(id, root, known.layout, False, ())

    def open(self, tenant: str, layout: ModelLayout) -> None:
        """Called under the lock."""
        mark = fingerprint(layout)
        name = namespace_id(tenant, mark)
        opened = self._kept.planner.add_namespace(name, namespace_root(self._kept.config.secret, tenant, mark), layout)
        self._kept.namespaces[name] = RestoredNamespace(tenant, layout)
        self._kept.described[name] = Described(layout, mark, opened.cuts)

    def save_names(self) -> None:
        """Let the folder name every open namespace. What it cannot name is served, and tried again by `tick`."""
        with self._naming:
            for name in list(self._kept.unnamed):
                tenant, layout = self._kept.namespaces[name]
                try:
                    assert self._kept.disk is not None
                    self._kept.disk.manifest.save_namespace(name, tenant, dump_layout(layout))
                except TierFault as fault:
                    self._kept.trouble(Tier.DISK, str(fault))
                    return
                with self._kept.lock:
                    self._kept.unnamed.pop(name, None)
