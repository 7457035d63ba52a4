"""Random work on the disk tier, with faults, restarts and damage, against a dictionary of what it should hold."""

import errno
import os
import random

import pytest
from disk_samples import (
    SEGMENT_PAGES,
    SEGMENTS,
    entry_for,
    failing,
    frame_of,
    header_of,
    open_tier,
    page_of,
    raw_of,
    read,
)

from kvstore.core.errors import TierFault
from kvstore.tiers.manifest import FILE_NAME
from kvstore.tiers.verify import verify_folder

SLOTS = SEGMENTS * (SEGMENT_PAGES - 1)
STEPS = 120


@pytest.mark.parametrize("seed", range(6))
def test_the_tier_holds_what_was_committed_through_faults_restarts_and_damage(tmp_path, monkeypatch, seed):
    rng = random.Random(seed)
    tier = open_tier(tmp_path)
    held = {}  # number -> entry, as committed
    generation = tier.recovered.next_generation
    for number in range(STEPS):
        step = rng.choices(("put", "faulty put", "drop", "touch", "restart", "damage"), (50, 15, 10, 5, 5, 3))[0]
        if step in ("put", "faulty put"):
            page = page_of(rng.randrange(SLOTS))
            entry = entry_for(number, page, generation)
            generation += 1
            old = [entry.key for entry in held.values() if entry.page == page]
            call = rng.choice(("pwritev", "fdatasync"))
            first = rng.randrange(1, 4) if step == "faulty put" else 10**6
            with failing(monkeypatch, call, rng.choice((errno.EIO, errno.ENOSPC)), first, first):
                try:
                    tier.manifest.commit([], old)
                    held = {kept: one for kept, one in held.items() if one.page != page}
                    if page // SEGMENT_PAGES not in tier.slot_pages:
                        tier.assign(page // SEGMENT_PAGES, 1)
                    tier.write(page, frame_of(header_of(number, entry.generation)))
                    tier.sync([page // SEGMENT_PAGES])
                    tier.manifest.commit([entry], [])
                    held[number] = entry
                except TierFault:
                    # out of use for this process, and with a header that failed, for good
                    lost = tier.bad_segments | set(range(SEGMENTS)) - set(tier.slot_pages)
                    gone = [one.key for one in held.values() if one.page // SEGMENT_PAGES in lost]
                    tier.manifest.commit([], gone)
                    held = {kept: one for kept, one in held.items() if one.key not in gone}
        elif step == "drop" and held:
            entry = held.pop(rng.choice(list(held)))
            tier.manifest.commit([], [entry.key])
        elif step == "touch" and held:
            chosen = rng.choice(list(held))
            held[chosen] = held[chosen]._replace(last_used=1850000000.0 + number)
            tier.manifest.touch({held[chosen].key: held[chosen].last_used})
        elif step in ("restart", "damage"):
            tier.close()
            if step == "damage":
                os.truncate(tmp_path / FILE_NAME, rng.randrange((tmp_path / FILE_NAME).stat().st_size // 2))
            else:
                assert not verify_folder(tmp_path).bad
            tier = open_tier(tmp_path)
            recovered = {entry.block: entry for entry in tier.recovered.entries}
            if tier.recovered.source == "manifest":
                assert recovered == held
            else:  # recency is lost, and what was dropped but not overwritten may be back
                assert {entry._replace(last_used=0.0) for entry in held.values()} <= {
                    entry._replace(last_used=0.0) for entry in recovered.values()
                }
            held = recovered
            fresh = tier.recovered.next_generation
            if tier.recovered.source == "manifest" and tier.slot_pages:
                assert fresh >= generation  # even of frames that were never committed
            assert fresh > max((entry.generation for entry in held.values()), default=0)
            generation = fresh
        for kept, entry in held.items():
            assert read(tier, entry) == raw_of(kept)
    tier.close()
