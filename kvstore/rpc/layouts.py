"""Model layouts <-> protobuf. A layout from outside passes ModelLayout's own checks and the limits of one message."""

from __future__ import annotations

import math
from dataclasses import asdict, fields

from kvstore.core.errors import InvalidLayout
from kvstore.core.layout import FORMAT_VERSION, ComputeShape, Group, Layer, ModelLayout, Section, Shard
from kvstore.rpc.enums import GROUP_KIND, LAYER_KIND
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.limits import MAX_SECTIONS, MAX_TEXT

_COMPUTE_FIELDS = tuple(field.name for field in fields(ComputeShape))


def layout_to_wire(layout: ModelLayout) -> pb.ModelLayout:
    return pb.ModelLayout(
        model=layout.model,
        revision=layout.revision,
        numerics=layout.numerics,
        canonical=layout.canonical,
        block_tokens=layout.block_tokens,
        resume_alignment=layout.resume_alignment,
        layers=[
            pb.Layer(kind=LAYER_KIND.to_wire(layer.kind), ratio=layer.ratio, window_tokens=layer.window_tokens)
            for layer in layout.layers
        ],
        groups=[_group_to_wire(group) for group in layout.groups],
        window_rows=layout.window_rows,
        shard=pb.Shard(**asdict(layout.shard)),
        compute=None if layout.compute is None else _compute_to_wire(layout.compute),
        bounded_replay=layout.bounded_replay,
        format_version=layout.format_version,
    )


def layout_from_wire(message: pb.ModelLayout) -> ModelLayout:
    """Raises InvalidLayout with the field that is wrong."""
    if message.format_version != FORMAT_VERSION:
        raise InvalidLayout(
            f"layout format_version={message.format_version}, this daemon knows {FORMAT_VERSION}: "
            "run the same version of kvstore on both sides"
        )
    sections = sum(len(group.sections) for group in message.groups)
    if sections > MAX_SECTIONS:
        raise InvalidLayout(f"the layout has {sections} sections: at most {MAX_SECTIONS} are allowed")
    return ModelLayout(
        model=message.model,
        revision=message.revision,
        numerics=message.numerics,
        canonical=message.canonical,
        block_tokens=message.block_tokens,
        resume_alignment=message.resume_alignment,
        layers=tuple(
            Layer(LAYER_KIND.to_core(layer.kind), layer.ratio, layer.window_tokens) for layer in message.layers
        ),
        groups=tuple(_group_from_wire(group) for group in message.groups),
        window_rows=message.window_rows,
        shard=_shard_from_wire(message.shard),
        compute=_compute_from_wire(message.compute) if message.HasField("compute") else None,
        bounded_replay=message.bounded_replay,
        format_version=message.format_version,
    )


def _group_to_wire(group: Group) -> pb.Group:
    return pb.Group(
        name=group.name,
        kind=GROUP_KIND.to_wire(group.kind),
        optional=group.optional,
        sections=[
            pb.Section(
                layer=section.layer,
                component=section.component,
                entries=section.entries,
                data_bytes=section.data_bytes,
                scale_bytes=section.scale_bytes,
                dtype=section.dtype,
            )
            for section in group.sections
        ],
    )


def _group_from_wire(message: pb.Group) -> Group:
    return Group(
        name=_named(message.name, "group name"),
        kind=GROUP_KIND.to_core(message.kind),
        sections=tuple(
            Section(
                layer=section.layer,
                component=_named(section.component, "component"),
                entries=section.entries,
                data_bytes=section.data_bytes,
                scale_bytes=section.scale_bytes,
                dtype=_named(section.dtype, "dtype"),
            )
            for section in message.sections
        ),
        optional=message.optional,
    )


def _shard_from_wire(message: pb.Shard) -> Shard:
    shard = Shard(
        first_layer=message.first_layer if message.HasField("first_layer") else None,
        end_layer=message.end_layer if message.HasField("end_layer") else None,
        first_kv_head=message.first_kv_head if message.HasField("first_kv_head") else None,
        end_kv_head=message.end_kv_head if message.HasField("end_kv_head") else None,
    )
    for first, end, what in (
        (shard.first_layer, shard.end_layer, "layer"),
        (shard.first_kv_head, shard.end_kv_head, "kv_head"),
    ):
        if end is not None and end <= (first or 0):
            raise InvalidLayout(f"shard end_{what}={end} is not above first_{what}={first or 0}")
    return shard


def _compute_to_wire(compute: ComputeShape) -> pb.ComputeShape:
    return pb.ComputeShape(**asdict(compute))


def _compute_from_wire(message: pb.ComputeShape) -> ComputeShape:
    values = {name: getattr(message, name) for name in _COMPUTE_FIELDS}
    for name, value in values.items():
        if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
            raise InvalidLayout(f"compute.{name}={value} is not a finite number of at least 0")
    return ComputeShape(**values)


def _named(text: str, what: str) -> str:
    if not 1 <= len(text) <= MAX_TEXT:
        raise InvalidLayout(f"a layout's {what} has {len(text)} characters: give it 1 to {MAX_TEXT}")
    return text
