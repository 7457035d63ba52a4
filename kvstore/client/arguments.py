"""The caller's arguments, checked. All raise InvalidInput with the fact and the remedy; nothing else in this room does
so for what the caller passed, but for arrays (`packing.py`, `putting.py`)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from kvstore.client.hashing import Extras, Tokens
from kvstore.core.errors import InvalidInput
from kvstore.core.match import Hints
from kvstore.core.prefix import Extra
from kvstore.rpc.convert import flops_from_wire, hints_from_wire, hints_to_wire, text_from_wire

MAX_SOCKET_PATH = 107  # sun_path of Linux, without its final NUL

NO_HINTS = Hints()


def int32_tokens(tokens: ArrayLike) -> Tokens:
    """An own, read-only copy of the caller's token ids. Raises InvalidInput for what is no list of int32."""
    try:
        given = np.asarray(tokens)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidInput(f"tokens are no list of whole numbers: {error}") from error
    if given.ndim != 1:
        raise InvalidInput(f"tokens have {given.ndim} dimensions: pass one sequence of token ids")
    if given.size and given.dtype.kind not in "iu":
        raise InvalidInput(f"tokens have dtype {given.dtype}: pass int32 token ids")
    if given.size and given.dtype != np.int32:
        low, high = int(given.min()), int(given.max())
        if low < -(1 << 31) or high >= 1 << 31:
            raise InvalidInput(f"tokens run from {low} to {high}: token ids must fit int32")
    own = given.astype(np.int32, copy=True)
    own.flags.writeable = False
    return own


def checked_extras(extras: Extras | None) -> Extras:
    """The caller's extras by block number. Raises InvalidInput for anything but (tag, bytes) pairs."""
    checked: dict[int, tuple[Extra, ...]] = {}
    if extras is not None and not isinstance(extras, Mapping):
        raise InvalidInput(f"extras are a {type(extras).__name__}: map block numbers to lists of (tag, bytes) pairs")
    for block, values in (extras or {}).items():
        if not isinstance(block, int) or block < 0:
            raise InvalidInput(f"extras name block {block!r}: use block numbers from 0")
        if not isinstance(values, Sequence):
            raise InvalidInput(f"extras of block {block} are {values!r}: pass a list of (tag, bytes) pairs")
        for extra in values:
            if len(extra) != 2 or not isinstance(extra[0], str) or not isinstance(extra[1], bytes):
                raise InvalidInput(f"extras of block {block} are {extra!r}: pass (tag, bytes) pairs")
            check_unicode(extra[0], f"tag {extra[0]!r} of block {block}")
        checked[block] = tuple(Extra(tag, value) for tag, value in values)
    return checked


def checked_hints(hints: Hints) -> Hints:
    """Hints are the caller's: out of range they raise here and not as the store's refusal."""
    if hints is NO_HINTS:
        return hints
    if not isinstance(hints, Hints):
        raise InvalidInput(f"hints are a {type(hints).__name__}: pass kvstore.Hints(...), or leave them out")
    try:
        return hints_from_wire(hints_to_wire(hints))
    except InvalidInput:
        raise
    except (ValueError, TypeError) as error:  # protobuf, of a number out of range or of another type
        raise InvalidInput(
            f"{hints} cannot be: {error}; counts are whole numbers from 0, texts valid Unicode"
        ) from error


def checked_seconds(seconds: float, what: str, limit: float = math.inf) -> float:
    if not isinstance(seconds, int | float) or not (0 < seconds <= limit and math.isfinite(seconds)):
        raise InvalidInput(f"{what}={seconds!r} is out of range: give seconds above 0 and at most {limit:g}")
    return float(seconds)


def checked_flops(flops: float | None) -> float | None:
    """A worker's speed in FLOP a second, where it is known."""
    if flops is None:
        return None
    if not isinstance(flops, int | float):
        raise InvalidInput(f"worker_flops={flops!r} is no number: give FLOP a second, or leave it out")
    return flops_from_wire(flops)


def check_text(text: str, what: str) -> None:
    if not isinstance(text, str):
        raise InvalidInput(f"{what} {text!r} is no text: pass a str")
    text_from_wire(text, what)
    check_unicode(text, what)


def check_unicode(text: str, what: str) -> None:
    """A lone surrogate is a str that no encoding has."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{what} is no valid Unicode: {error.reason}; leave its lone surrogates out") from error


def checked_address(address: str) -> str:
    """`unix:PATH` or `HOST:PORT`. Raises InvalidInput for anything else."""
    if not isinstance(address, str):
        raise InvalidInput(f"address {address!r} is no text: give unix:PATH or HOST:PORT")
    path = address.removeprefix("unix:")
    if path != address:
        if not path or len(path.encode()) > MAX_SOCKET_PATH:
            raise InvalidInput(
                f"socket path {path!r} has {len(path.encode())} bytes: Linux allows 1 to {MAX_SOCKET_PATH}"
            )
        return address
    port = re.fullmatch(r"(?:[^\s:/\[\]]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})", address)
    if port is None or not 0 < int(port[1]) < 65536:
        raise InvalidInput(f"address {address!r} is not understood: give unix:PATH or HOST:PORT")
    return address
