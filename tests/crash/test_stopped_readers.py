"""A reader that is stopped past its lease never believes what lies in its slots by then (RELIABILITY C11, C12).

SIGSTOP between lookup and fetch, with views in hand, and inside each kind of copy; then the lease expires, the slots
are filled with 0xEE, and SIGCONT. What it holds is invalid or a miss; a second lookup may find the right bytes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from crash_tools import LAYOUTS, DaemonProcess, Document, client_of, daemon
from lease_clients import DEMO
from lease_stops import CANARY
from lease_tools import until, workers

SETTINGS = "[match]\nlease_seconds = 1\n"
COPIES = ("copy", "verify", "into", "state")
WAYS = ("matched", "views", "layers", *COPIES)
NUMBERS = (4, 9, 14, 19, 24, 29, 34)  # documents of seven blocks
FIRST_CANARY = 1000  # a document's number
HOST_BYTES = 8 << 20


@pytest.mark.parametrize("disk_bytes", [None, "64MiB"], ids=["host alone", "host and disk"])
def test_a_reader_stopped_past_its_lease_reports_a_miss_and_never_other_bytes(
    tmp_path: Path, disk_bytes: str | None
) -> None:
    documents = [Document(DEMO, number) for number in NUMBERS]
    with daemon(tmp_path, str(HOST_BYTES), disk_bytes, settings=SETTINGS) as process:
        process.start()
        with client_of(process, LAYOUTS[DEMO]) as client:
            assert all(document.put(client) for document in documents)
            assert client.flush(30, durable=disk_bytes is not None)
        calls = [("stopped", process.address, number, way) for number, way in zip(NUMBERS, WAYS, strict=True)]
        with workers(*calls) as readers:
            for reader, way in zip(readers, WAYS, strict=True):
                until(lambda reader=reader: reader.is_stopped, f"{way}: stopped")
            until(lambda: process.status().leases == 0, "leases of stopped workers expire")
            assert process.status().attached_workers == len(WAYS)
            fill_with_canaries(process)
            said = {}
            for reader, way in zip(readers, WAYS, strict=True):
                reader.go_on()
                said[way] = reader.says()
    for way, facts in said.items():
        print(way, facts)
        assert facts["found"] == ("nothing" if disk_bytes is None else "right"), way
    for way in ("views", *COPIES):  # from the disk a worker brings documents in, over canaries
        assert said[way]["canary"] or disk_bytes is not None, f"{way}: slots were not used again: nothing was shown"
    views = said["views"]
    assert not (views["right"] or views["valid"] or views["valid by stamps"])
    assert not (said["layers"]["layers"] or said["layers"]["layers by stamps"])
    for way in ("matched", "views", "layers"):
        assert said[way]["counters"]["fetch_lease_over"] == 1, way
    for way in COPIES:
        assert said[way]["changed"], f"{way}: slots were not used again: nothing was shown"
        assert said[way]["counters"]["fetch_stamp_mismatch"] == 1, way


def fill_with_canaries(process: DaemonProcess) -> None:
    """Three times what the host holds."""
    with client_of(process, LAYOUTS[DEMO]) as client:
        number, nbytes = FIRST_CANARY, 0
        while nbytes < 3 * HOST_BYTES:
            document = Document(DEMO, number)
            rows = {name: np.full_like(array, CANARY) for name, array in document.rows(0, document.blocks).items()}
            state = {name: np.full_like(array, CANARY) for name, array in document.state().items()}
            assert client.put(document.tokens(), first_block=0, rows=rows, states={document.end_tokens: state})
            assert client.flush(30)
            number, nbytes = number + 1, nbytes + document.raw_bytes
    assert process.status().counters["evicted_host"] > 0
