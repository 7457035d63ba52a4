"""Chained prefix hashes: the identity of blocks, and of the sequences that end inside one.

SHA-256 over the parent's hash, the block's token ids as little-endian int32, then the tagged extras of that
block. The root is made by the daemon from its secret, so tenants cannot probe each other. Identity is never
xxh3 (RELIABILITY section 5).
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kvstore.core.errors import InvalidInput

TOKEN_BYTES = 4  # int32, little-endian


class Extra(NamedTuple):
    """Something beside the tokens that a block's cache depends on.

    Tags in use: ``adapter`` (put it on block 0: every later block inherits it), ``image`` (hash of an image or
    embedding, on each block it touches), ``salt`` (request salt). Values are bytes of any length.
    """

    tag: str
    value: bytes


def namespace_root(secret: bytes, tenant: str, fingerprint: bytes) -> bytes:
    """Parent of block 0 for one tenant and layout: HMAC-SHA-256 under the daemon's secret, 32 bytes."""
    return hmac.digest(secret, _framed(b"kvstore root 1") + _framed(tenant.encode()) + _framed(fingerprint), "sha256")


def namespace_id(tenant: str, fingerprint: bytes) -> bytes:
    """Public name of a namespace, 32 bytes: in frames and on the wire. Reveals nothing of the root."""
    body = _framed(b"kvstore namespace 1") + _framed(tenant.encode()) + _framed(fingerprint)
    return hashlib.sha256(body).digest()


def hash_blocks(
    parent: bytes,
    tokens: bytes | memoryview,
    block_tokens: int,
    extras: Mapping[int, Sequence[Extra]] | None = None,
) -> bytes:
    """Hashes of the whole blocks in `tokens`, packed: 32 bytes each, in order.

    `tokens` are little-endian int32; a last part shorter than a block is left out. `extras` maps an index into
    these blocks to the extras of that block, in an order that counts; one of a part left out is left out too.

    >>> root = bytes(32)
    >>> whole = hash_blocks(root, bytes(4 * 256), 128)
    >>> len(whole), whole[32:] == hash_blocks(whole[:32], bytes(4 * 128), 128)
    (64, True)
    """
    if len(parent) != 32:
        raise InvalidInput(f"a parent hash has 32 bytes, not {len(parent)}")
    if block_tokens < 1:
        raise InvalidInput(f"block_tokens={block_tokens} is out of range: a block has at least one token")
    view = memoryview(tokens).cast("B")
    if len(view) % TOKEN_BYTES:
        raise InvalidInput(f"{len(view)} bytes are not whole int32 tokens: pass little-endian int32")
    if extras and min(extras) < 0:
        raise InvalidInput(f"extras name block {min(extras)}: count from 0, the first block of these tokens")
    step = block_tokens * TOKEN_BYTES
    prefix = b"kvblk1" + struct.pack("<I", block_tokens)
    sha256, hashes, have = hashlib.sha256, [], extras or {}
    for index in range(len(view) // step):
        block = sha256(prefix)
        block.update(parent)
        block.update(view[index * step : (index + 1) * step])
        for tag, value in have.get(index, ()):
            block.update(_framed(tag.encode()) + _framed(value))
        parent = block.digest()
        hashes.append(parent)
    return b"".join(hashes)


def handoff_key(parent: bytes, rest: bytes | memoryview, block_tokens: int, extras: Sequence[Extra] = ()) -> bytes:
    """Name of the exact sequence of tokens that a handoff stands at, 32 bytes; never the name of a block.

    `parent` is the hash of the last whole block, the root before there is one; `rest` the tokens behind it, fewer than
    a block, little-endian int32; `extras` those of the block that they begin.

    >>> len(handoff_key(bytes(32), bytes(4 * 5), 128))
    32
    """
    if len(parent) != 32:
        raise InvalidInput(f"a parent hash has 32 bytes, not {len(parent)}")
    view = memoryview(rest).cast("B")
    if len(view) % TOKEN_BYTES or len(view) >= block_tokens * TOKEN_BYTES:
        raise InvalidInput(f"{len(view)} bytes are not int32 tokens of a part of a block of {block_tokens}")
    # the length comes first, so that the framed extras cannot be taken for tokens
    name = hashlib.sha256(b"kvhand1" + struct.pack("<II", block_tokens, len(view) // TOKEN_BYTES))
    name.update(parent)
    name.update(view)
    for tag, value in extras:
        name.update(_framed(tag.encode()) + _framed(value))
    return name.digest()


def _framed(body: bytes) -> bytes:
    return struct.pack("<Q", len(body)) + body
