"""Descriptors and staged puts <-> protobuf: what goes between a daemon and a worker that share memory."""

from __future__ import annotations

from collections.abc import Sequence

from kvstore.core.descriptor import record_bytes
from kvstore.core.errors import InvalidInput
from kvstore.core.keys import Chain
from kvstore.core.layout import ModelLayout
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.limits import MAX_OBJECTS


def descriptors_to_wire(group: int, first_block: int, length: int, records: bytes, objects: int) -> pb.Descriptors:
    return pb.Descriptors(group=group, first_block=first_block, length=length, records=records, objects=objects)


def check_descriptors(message: pb.Descriptors, layout: ModelLayout, slots: int) -> int:
    """How many objects these are, each in so many slots. Raises InvalidInput for what does not fit the layout."""
    if message.group >= len(layout.groups) or message.length != layout.groups[message.group].nbytes:
        raise InvalidInput(f"descriptors of group {message.group} with {message.length} bytes are not of this layout")
    count, rest = divmod(len(message.records), record_bytes(slots))
    if rest or count != message.objects:
        raise InvalidInput(f"{message.objects} descriptors have {len(message.records)} bytes, which is not theirs")
    return count


def staged_from_wire(
    message: pb.StagedPut, chain: Chain, layout: ModelLayout, staging_bytes: int
) -> list[tuple[int, int, int, int]]:
    """(block, group, offset, length) of each object: in chain order, each once, inside the staging region."""
    count = len(message.blocks)
    if not 0 < count <= MAX_OBJECTS or len(message.groups) != count or len(message.offsets) != count:
        raise InvalidInput(f"{count} staged objects: send 1 to {MAX_OBJECTS}, with a group and an offset for each")
    lengths = [group.nbytes for group in layout.groups]
    staged: list[tuple[int, int, int, int]] = []
    before = (-1, -1)
    for block, group, offset in zip(message.blocks, message.groups, message.offsets, strict=True):
        if block >= chain.blocks or group >= len(lengths):
            raise InvalidInput(f"staged object (block {block}, group {group}) is not within the chain or the layout")
        if (block, group) <= before:
            raise InvalidInput(f"staged object (block {block}, group {group}) comes twice, or out of order")
        if offset + lengths[group] > staging_bytes:
            raise InvalidInput(
                f"a staged object ends at {offset + lengths[group]}, behind the region's {staging_bytes}"
            )
        before = (block, group)
        staged.append((block, group, offset, lengths[group]))
    return staged


def contents_to_wire(contents: Sequence[bytes]) -> bytes:
    return b"".join(contents)
