"""Values survive the wire; what cannot be right is refused with one plain sentence."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest

from kvstore.core import presets
from kvstore.core.errors import InvalidInput, InvalidLayout
from kvstore.core.fingerprint import fingerprint
from kvstore.core.keys import Chain, Tier
from kvstore.core.layout import ComputeShape, Shard
from kvstore.core.match import (
    COLD_PLAN,
    Hints,
    InferenceMode,
    Match,
    MissReason,
    Plan,
    PlanKind,
    ResumePoint,
    SessionEvent,
    Snapshots,
)
from kvstore.core.reserve import Durability, ObjectSpec, PutStatus, ReserveStatus
from kvstore.rpc import convert, enums
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.layouts import layout_from_wire, layout_to_wire
from kvstore.rpc.limits import MAX_BATCH_BLOCKS, MAX_BREAKPOINTS
from kvstore.rpc.matches import match_from_wire, match_to_wire

LAYOUT = presets.v4_tiny()
CHAIN = Chain(3, b"p" * 32, b"h" * 32 * 4)
LAYOUTS = [
    presets.v4_flash(),
    presets.v4_pro(),
    presets.v32(),
    presets.v4_demo(),
    LAYOUT,
    presets.full_tiny(),
    presets.with_changes(LAYOUT, shard=Shard(0, 2, 0, 1)),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.model)
def test_a_layout_keeps_its_fingerprint_over_the_wire(layout):
    received = layout_from_wire(pb.ModelLayout.FromString(layout_to_wire(layout).SerializeToString()))
    assert received == layout
    assert fingerprint(received) == fingerprint(layout)


def test_the_wire_knows_every_field_of_a_compute_shape():
    assert [field.name for field in fields(ComputeShape)] == [field.name for field in pb.ComputeShape.DESCRIPTOR.fields]


def _broken(**changes):
    message = layout_to_wire(presets.v4_demo())
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def _broken_section(**changes):
    message = layout_to_wire(presets.v4_demo())
    for name, value in changes.items():
        setattr(message.groups[0].sections[0], name, value)
    return message


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (_broken(format_version=99), "format_version=99"),
        (_broken(model=""), "model"),
        (_broken(block_tokens=0), "block_tokens=0"),
        (_broken(resume_alignment=129), "resume_alignment=129"),
        (_broken_section(data_bytes=0), "has no bytes"),
        (_broken_section(layer=77), "not in layer order"),
        (_broken_section(entries=1 << 31), "bytes"),
        (_broken_section(component=""), "component"),
        (_broken_section(dtype="x" * 201), "dtype has 201 characters"),
        (pb.ModelLayout(format_version=1, model="m", revision="r", numerics="n"), "block_tokens=0"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(message, says):
    with pytest.raises(InvalidLayout, match=says):
        layout_from_wire(message)


def test_unknown_enum_values_are_refused_by_name():
    message = layout_to_wire(LAYOUT)
    message.layers[0].kind = 0
    with pytest.raises(InvalidInput, match="0 is no layer kind: send one of SWA, CSA, HCA, FULL, RECURRENT"):
        layout_from_wire(message)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_a_compute_shape_has_finite_numbers(value):
    message = layout_to_wire(presets.v4_demo())
    message.compute.index_flop_weight = value
    with pytest.raises(InvalidLayout, match="index_flop_weight"):
        layout_from_wire(message)


def test_a_shard_that_ends_before_it_starts_is_refused():
    message = layout_to_wire(LAYOUT)
    message.shard.first_layer, message.shard.end_layer = 3, 3
    with pytest.raises(InvalidLayout, match="end_layer=3 is not above first_layer=3"):
        layout_from_wire(message)


@pytest.mark.parametrize(
    "pairs, core",
    [
        (enums.TIER, Tier),
        (enums.MODE, InferenceMode),
        (enums.PLAN_KIND, PlanKind),
        (enums.MISS_REASON, MissReason),
        (enums.RESERVE_STATUS, ReserveStatus),
        (enums.PUT_STATUS, PutStatus),
        (enums.DURABILITY, Durability),
        (enums.SESSION_EVENT, SessionEvent),
    ],
)
def test_every_member_of_every_enum_survives_the_wire(pairs, core):
    for member in core:
        assert pairs.to_wire(member) != 0
        assert pairs.to_core(pairs.to_wire(member)) is member


def test_a_chain_survives_the_wire():
    assert convert.chain_from_wire(convert.chain_to_wire(CHAIN), 128) == CHAIN


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (pb.Chain(parent=b"p" * 31), "chain.parent has 31 bytes: send 32"),
        (pb.Chain(), "chain.parent has 0 bytes"),
        (pb.Chain(parent=b"p" * 32, hashes=b"h" * 33), "send 32 a block"),
        (pb.Chain(parent=b"p" * 32, first_block=1 << 31), "beyond token"),
        (
            pb.Chain(parent=b"p" * 32, hashes=bytes(32 * (MAX_BATCH_BLOCKS + 1))),
            f"{MAX_BATCH_BLOCKS + 1} blocks: send at most {MAX_BATCH_BLOCKS}",
        ),
    ],
)
def test_a_chain_that_cannot_be_is_refused(message, says):
    with pytest.raises(InvalidInput, match=says):
        convert.chain_from_wire(message, 128)


def test_the_largest_batch_is_accepted():
    message = pb.Chain(parent=b"p" * 32, hashes=bytes(32 * MAX_BATCH_BLOCKS))
    assert convert.chain_from_wire(message, 128).blocks == MAX_BATCH_BLOCKS


@pytest.mark.parametrize("prompt", [0, 7 * 128 - 1])
def test_a_prompt_shorter_than_its_chain_is_refused(prompt):
    with pytest.raises(InvalidInput, match="prompt"):
        convert.prompt_from_wire(prompt, CHAIN, 128)
    assert convert.prompt_from_wire(7 * 128, CHAIN, 128) == 896


@pytest.mark.parametrize(
    "hints",
    [
        Hints(),
        Hints("a7", 3, InferenceMode.THINK_MAX, "code agent", True, 12.5, (128, 2304), 60.0),
        Hints(expected_gap_seconds=0.0, ttl_seconds=0.0),
    ],
)
def test_hints_survive_the_wire(hints):
    assert convert.hints_from_wire(convert.hints_to_wire(hints)) == hints


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (pb.Hints(session="s" * 201), "hints.session has 201 characters"),
        (pb.Hints(kind="k" * 201), "hints.kind"),
        (pb.Hints(ttl_seconds=math.nan), "hints.ttl_seconds=nan"),
        (pb.Hints(expected_gap_seconds=-1), "expected_gap_seconds=-1"),
        (pb.Hints(breakpoints=[0]), "a breakpoint is a token count"),
        (pb.Hints(breakpoints=[1 << 31]), "a breakpoint is a token count"),
        (pb.Hints(breakpoints=[1] * (MAX_BREAKPOINTS + 1)), f"at most {MAX_BREAKPOINTS}"),
        (pb.Hints(mode=99), "99 is no inference mode"),
    ],
)
def test_hints_out_of_range_are_refused(message, says):
    with pytest.raises(InvalidInput, match=says):
        convert.hints_from_wire(message)


def _spec(block=0, group=0, length=None, content=bytes(16)):
    size = LAYOUT.groups[group].nbytes if group < len(LAYOUT.groups) else 1
    return ObjectSpec(block, group, size if length is None else length, content)


def test_object_specs_survive_the_wire():
    specs = [_spec(0), _spec(0, 1), _spec(1), _spec(3, 1)]
    assert convert.specs_from_wire(convert.specs_to_wire(specs), CHAIN, LAYOUT) == specs


@pytest.mark.parametrize(
    ("specs", "says"),
    [
        ([], "0 objects: send 1 to"),
        ([_spec(4)], "block index 4 is not within the chain's 4 blocks"),
        ([_spec(0, 9)], "group 9 does not exist"),
        ([_spec(length=LAYOUT.rows.nbytes - 1)], f"has {LAYOUT.rows.nbytes} bytes in this layout"),
        ([_spec(content=bytes(15))], "content has 15 bytes: send 16"),
        ([_spec(1), _spec(0)], "in chain order"),
        ([_spec(0, 1), _spec(0, 0)], "rows of a block before its states"),
        ([_spec(0), _spec(0)], "send each once"),
    ],
)
def test_object_specs_that_cannot_be_are_refused(specs, says):
    with pytest.raises(InvalidInput, match=says):
        convert.specs_from_wire(convert.specs_to_wire(specs), CHAIN, LAYOUT)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (pb.FetchRequest(), "0 objects"),
        (pb.FetchRequest(first_row=2, end_row=1), "not within the chain's 4 blocks"),
        (pb.FetchRequest(end_row=5), "not within the chain's 4 blocks"),
        (pb.FetchRequest(states=[pb.ObjectName(block=4, group=1)]), "block index 4"),
        (pb.FetchRequest(states=[pb.ObjectName(block=0, group=2)]), "group 2 does not exist"),
        (pb.FetchRequest(states=[pb.ObjectName(block=0, group=0)]), "first_row and end_row"),
    ],
)
def test_a_fetch_of_what_cannot_be_is_refused(request_, says):
    with pytest.raises(InvalidInput, match=says):
        convert.fetch_keys(request_, CHAIN, LAYOUT)


def _match(**changes):
    point = ResumePoint(256, 7000, Tier.DISK, 0.5, None)
    values = {
        "rows_tokens": 384,
        "resume_points": (point, ResumePoint(128, 3000, Tier.HOST, None, 2.0, True)),
        "replay": Plan(PlanKind.REPLAY, 384, 128, 6000, Tier.HOST, 0.1, 0.2),
        "plan": Plan(PlanKind.RESUME, 256, 256, 7000, Tier.DISK, 0.5, None),
        "snapshots": Snapshots((512, 640), 1024, True),
        "canonical": True,
        "reason": MissReason.STATE_MISSING,
        "lease": 9,
        "lineage": b"l" * 16,
        "cold_seconds": 3.5,
    }
    return Match(**(values | changes))


@pytest.mark.parametrize(
    "match",
    [
        _match(),
        _match(cold_seconds=None),
        _match(plan=COLD_PLAN, replay=None, resume_points=(), lease=None, rows_tokens=0, snapshots=Snapshots()),
    ],
)
def test_a_match_survives_the_wire(match):
    sent = match_to_wire(match, boot_epoch=5)
    assert sent.boot_epoch == 5
    assert match_from_wire(pb.LookupResponse.FromString(sent.SerializeToString())) == match


@pytest.mark.parametrize(
    "match",
    [
        _match(rows_tokens=128),
        _match(lineage=b""),
        _match(plan=Plan(PlanKind.COLD, 128, 0, 0, None, None, None)),
        _match(plan=Plan(PlanKind.RESUME, 128, 256, 0, Tier.HOST, None, None)),
        _match(plan=Plan(PlanKind.RESUME, 128, 128, 0, Tier.HOST, math.nan, None)),
        _match(cold_seconds=math.nan),
        _match(snapshots=Snapshots(tuple(range(65)))),
    ],
)
def test_a_match_that_no_daemon_would_send_is_refused(match):
    with pytest.raises(InvalidInput):
        match_from_wire(match_to_wire(match, 1))
