"""How much one message may ask for. Every refusal names the limit it hit."""

from __future__ import annotations

MIB = 1 << 20

MAX_BATCH_BLOCKS = 65_536  # 8 million tokens at 128 a block; 2 MiB of hashes
MAX_OBJECTS = 65_536  # in one Reserve or Fetch; about 2 MiB of specs
MAX_CHUNK_BYTES = (
    1 * MIB
)  # of data in one stream message: 1 to 2 MiB is where grpc streams fastest (MEASURED section 2)
MAX_MESSAGE_BYTES = 8 * MIB  # the largest Reserve allowed by the limits above takes 5 MiB
MAX_TOKENS = (1 << 31) - 1
MAX_BREAKPOINTS = 1024
MAX_SECTIONS = 65_536  # in one layout; V4-Pro has about 250
MAX_TEXT = 200  # characters of a name
MAX_NEW_NAMESPACES = 1024  # opened by one run of the daemon; each costs memory for ever
MAX_LOCATE_SECONDS = 10.0  # one Locate waits no longer; a worker that wants to asks again
MAX_RELEASES = 4096  # leases in one Release
MAX_REASON = 500  # characters of a Report
MAX_HANDOFF_SECONDS = 600.0  # whoever comes later than that computes again
MAX_HANDOFF_BYTES = 8 << 30  # V4-Pro's whole cache at a million tokens takes 5.2 GB
MAX_PIN_SECONDS = 30 * 86_400.0
MAX_EXPLAINED_OBJECTS = 1024  # of one lookup
MAX_EXPLAINED_LOOKUPS = 64
