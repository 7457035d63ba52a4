"""SIGKILL at any moment: what was acknowledged is there, and nothing that is there is wrong."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

from disk_samples import SEGMENT_PAGES, SEGMENTS, open_tier, page_of, raw_of, read

SLOTS = SEGMENTS * (SEGMENT_PAGES - 1)
ROUNDS = 12

# Puts objects for ever, into slots it takes from older ones, and says which are durable and which are gone.
WRITER = f"""
import sys
from pathlib import Path
from disk_samples import *
tier = open_tier(Path(sys.argv[1]))
number = int(sys.argv[2])
while True:
    old, page = number - {SLOTS}, page_of(number % {SLOTS})
    if page // tier.segment_pages not in tier.slot_pages:
        tier.assign(page // tier.segment_pages, 1)
    print("drop", old, flush=True)
    tier.manifest.commit([], [entry_for(old).key] if old >= 0 else [])
    tier.write(page, frame_of(header_of(number)))
    tier.sync([page // tier.segment_pages])
    tier.manifest.commit([entry_for(number, page=page)], [])
    print("put", number, flush=True)
    number += 1
"""


def test_what_was_acknowledged_survives_being_killed_at_any_moment(tmp_path):
    rng = random.Random(5)
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    durable, following = set(), 0
    for _ in range(ROUNDS):
        command = [sys.executable, "-c", WRITER, str(tmp_path / "disk"), str(following)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}) as writer:
            said = [writer.stdout.readline() for _ in range(rng.randrange(2, 40))]
            os.kill(writer.pid, signal.SIGKILL)
            said += writer.stdout.readlines()
        for line in said:
            if not line.endswith(b"\n"):
                continue
            what, number = line.split()
            following = max(following, int(number) + 1) if what == b"put" else following
            (durable.add if what == b"put" else durable.discard)(int(number))
        tier = open_tier(tmp_path / "disk")
        found = {entry.block: read(tier, entry) for entry in tier.recovered.entries}
        assert tier.recovered.source == "manifest"
        assert all(data == raw_of(number) for number, data in found.items())
        assert durable <= set(found) and len({page_of(number % SLOTS) for number in found}) == len(found)
        durable = set(found)
        following = max(found, default=-1) + 1
        tier.close()
    assert following > 20
