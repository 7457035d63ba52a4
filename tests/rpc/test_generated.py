"""The committed stubs were made from the committed .proto files."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from kvstore.rpc import generated
from kvstore.rpc.methods import METHODS, RAW_METHODS

REPOSITORY = Path(__file__).resolve().parents[2]
GENERATED = Path(generated.__file__).parent


def test_the_stubs_are_those_of_the_proto_files():
    protos = sorted((REPOSITORY / "proto" / "kvstore" / "v1").glob("*.proto"))
    now = [f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.name}" for path in protos]
    assert (GENERATED / "PROTO_SHA256").read_text().splitlines() == now, "run proto/generate"


def test_exactly_the_bulk_streams_are_raw():
    assert {method.name for method in METHODS if method.streams_requests or method.streams_responses} == RAW_METHODS


@pytest.mark.slow
def test_a_full_regeneration_gives_the_committed_stubs(tmp_path):
    subprocess.run([sys.executable, REPOSITORY / "proto" / "generate", "--into", tmp_path], check=True)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    committed = {path.name: path.read_text() for path in GENERATED.iterdir() if path.is_file()}
    assert made == committed
