"""What policies ask about an object's place in its chain."""

from __future__ import annotations

from kvstore.core.index import Entry


def stands_on(entry: Entry) -> Entry | None:
    """The rows without which this object cannot be used; None where they are not stored or it is a chain's first."""
    node = entry.node.parent if entry.is_rows else entry.node
    return None if node is None else node.rows
