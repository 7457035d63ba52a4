"""A process that forks: the child's copies of its parent's clients let go of what is the parent's.

A lane that two processes write to would mix up both their calls, one that the child keeps open would hide the
parent's death from the daemon, and the staging region is memory of both: what the child packs there could be stored
as the parent's. So in the child a client is as good as closed: it finds nothing, takes nothing, and says so by its
counter `refused_by_breaker`; the child makes a client of its own. Locks that another thread of the parent held at that
moment would be held for ever, which is why those that a closed client still takes are made anew.
"""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class Inherited(Protocol):
    def forked(self) -> None:
        """This is the copy in a child: let go, and take no lock that the parent may have held."""


_known: WeakSet[Inherited] = WeakSet()


def tell_of_forks(owner: Inherited) -> None:
    """Have `owner.forked` called in each child that this process forks while `owner` lives."""
    _known.add(owner)


def _in_child() -> None:
    for owner in list(_known):
        owner.forked()


os.register_at_fork(after_in_child=_in_child)
