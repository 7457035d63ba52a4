"""Writes the golden files anew. Only for a new format version: old ones must stay readable as they are.

PYTHONPATH=.:tests/codec python tests/codec/make_golden_frames.py
"""

import json
from hashlib import sha256
from pathlib import Path

from frame_samples import TABLE_OFFSET, all_raw, all_zstd, header_of, noise, sections_of

from kvstore.codec.frame import encode_frame
from kvstore.core.presets import v4_demo, v4_flash, v4_pro, v4_tiny

HERE = Path(__file__).parent / "golden"


def main() -> None:
    facts = {}
    for name, layout in (("v4_flash", v4_flash()), ("v4_pro", v4_pro()), ("v4_demo", v4_demo())):
        for group in layout.groups:
            raw = noise(f"{name} {group.name}", group.nbytes)
            frame = b"".join(encode_frame(header_of(group, raw), group.sections, sections_of(group, raw), all_raw))
            facts[f"{name} {group.name}"] = {
                "bytes": len(frame),
                "header": frame[:TABLE_OFFSET].hex(),
                "sha256": sha256(frame).hexdigest(),
            }
    (HERE / "frames.json").write_text(json.dumps(facts, indent=1) + "\n")
    for group in v4_tiny().groups:
        raw = noise(f"v4_tiny {group.name}", group.nbytes)
        pieces = encode_frame(header_of(group, raw), group.sections, sections_of(group, raw), all_raw)
        (HERE / f"v4_tiny_{group.name}_raw.frame").write_bytes(b"".join(pieces))
    group = v4_tiny().state
    raw = bytes(index // 16 % 256 for index in range(group.nbytes))
    header = header_of(group, raw, ttl_seconds=3600.0)
    (HERE / "v4_tiny_state_zstd.frame").write_bytes(
        b"".join(encode_frame(header, group.sections, sections_of(group, raw), all_zstd))
    )


if __name__ == "__main__":
    main()
