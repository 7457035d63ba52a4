"""`kvstore status` says what host memory of another size would have done."""

from __future__ import annotations

from kvstore.cli.status import _gains, status_facts
from kvstore.rpc.generated import admin_pb2 as pb

GIB = 1 << 30


def namespace(*hits: tuple[float, float]) -> pb.NamespaceStatus:
    points = [pb.CurvePoint(host_bytes=int(size * GIB), token_hits=share, work_hits=share) for size, share in hits]
    return pb.NamespaceStatus(model="v4-flash", curve=points)


def test_gains_are_told_in_bytes_and_points() -> None:
    space = namespace((8, 0.2), (16, 0.25), (24, 0.27), (32, 0.291), (64, 0.3))
    told = _gains(space, 16 * GIB - 4096)  # the tier rounds what was configured
    assert told.startswith("rows of 25.0% of its prompt tokens")
    assert "less: -5.0 points" in told and "16.0 GiB more: +4.1 points" in told and "more: +5.0 points" in told


def test_the_json_has_every_point() -> None:
    facts = status_facts(pb.StatusResponse(namespaces=[namespace((8, 0.25), (16, 0.5))]))
    spaces = facts["namespaces"]
    assert isinstance(spaces, list)
    assert [point["token_hits"] for point in spaces[0]["curve"]] == [0.25, 0.5]
