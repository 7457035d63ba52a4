"""Tokens of made-up conversations, as the store's clients hash them: little-endian int32, packed.

Only equality matters to a cache, so what a user or a model writes is chance under a name: the same name gives the same
tokens on every machine. Real text is one token a character. The marks' numbers are ours; the model's own do not matter.
"""

from __future__ import annotations

import random
import struct
from enum import IntEnum
from functools import lru_cache

TOKEN_BYTES = 4
MAX_PREAMBLE_TOKENS = 160  # "Reasoning Effort: Absolute maximum..." as a paragraph; its length is an assumption


class Mark(IntEnum):
    """Special tokens of V4's chat form (V4-CACHE section 6), above every number that text and chance make."""

    BOS = 128_000
    EOS = 128_001
    USER = 128_002
    ASSISTANT = 128_003
    THINK = 128_004
    THINK_END = 128_005
    TOOL_CALL = 128_006
    TOOL_RESULT = 128_007
    TITLE = 128_010
    ACTION = 128_011
    QUERY = 128_012
    AUTHORITY = 128_013
    DOMAIN = 128_014


def marked(*marks: Mark) -> bytes:
    return struct.pack(f"<{len(marks)}i", *marks)


def written(text: str) -> bytes:
    """One token a character."""
    return struct.pack(f"<{len(text)}i", *map(ord, text))


def made_up(name: str, tokens: int) -> bytes:
    """`tokens` tokens below 65,536 that stand for the text of this name; a longer text starts with the shorter one.

    >>> made_up("a", 9)[:8] == made_up("a", 2), made_up("a", 2) == made_up("b", 2)
    (True, False)
    """
    drawn = random.Random(name).randbytes(TOKEN_BYTES * tokens)
    mask = int.from_bytes(b"\xff\xff\0\0" * tokens, "little")
    return (int.from_bytes(drawn, "little") & mask).to_bytes(TOKEN_BYTES * tokens, "little")


@lru_cache(maxsize=256)
def shared(name: str, tokens: int) -> bytes:
    """The same, kept: for what many sessions contain."""
    return made_up(name, tokens)


MAX_PREAMBLE = made_up("reasoning effort: absolute maximum", MAX_PREAMBLE_TOKENS)
