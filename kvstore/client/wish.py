"""What a worker wants of a match's bytes: all or a share, into which arrays, copied, checked or seen where they lie."""

from __future__ import annotations

from typing import Literal, NamedTuple

from kvstore.client.target import Into
from kvstore.core.errors import InvalidInput

Order = Literal["blocks", "layers"]
WHOLE = (0, 1)  # the one share of one rank


class Wish(NamedTuple):
    into: Into | None = None
    share: tuple[int, int] = WHOLE  # (rank, ranks)
    verify: bool = False  # checksums of the copies, too
    views: bool = False

    def part(self, blocks: int) -> tuple[int, int]:
        """The blocks of a plan of so many that this share has, end excluded. All shares together have each once."""
        rank, ranks = self.share
        return blocks * rank // ranks, blocks * (rank + 1) // ranks


def checked_wish(into: Into | None, share: tuple[int, int], *, verify: bool, views: bool) -> Wish:
    """Raises InvalidInput. Whether `into` fits is seen when its size is known."""
    is_pair = isinstance(share, tuple) and len(share) == 2 and all(isinstance(number, int) for number in share)
    if not is_pair or not 0 <= share[0] < share[1]:
        raise InvalidInput(f"share={share!r}: pass (rank, ranks), with 0 <= rank < ranks")
    if views and into is not None:
        raise InvalidInput("views are the daemon's memory: leave `into` out, or `views`")
    return Wish(into, share, verify, views)


def checked_order(order: str) -> bool:
    """Whether it is by layers. Raises InvalidInput."""
    if order not in ("blocks", "layers"):
        raise InvalidInput(f'order={order!r}: pass "blocks" or "layers"')
    return order == "layers"
