"""Child process that reads a manifest and writes its records to standard output.

A process of its own because LMDB reads through a mapping: in a truncated file that is a SIGBUS, which nothing can
catch. Imports nothing of kvstore, so that it starts in tens of milliseconds, and verifies nothing: the parent
(`manifest_child.py`) does. Run as `python -I -S manifest_reader.py MANIFEST [entry of sys.path]...`.

Each record is database (1 byte: E, U or M), key length u16, value length u32, key, value; the last one is Z, with
the number of records before it, as u64, for its value.
"""

from __future__ import annotations

import resource
import struct
import sys

RECORD = struct.Struct("<cHI")
COUNT = struct.Struct("<Q")
END = b"Z"
# recency and meta first: the parent needs them to make entries
DATABASES = ((b"M", b"meta"), (b"U", b"used"), (b"E", b"entries"))
FLUSH_BYTES = 1 << 18


def main(path: str) -> None:
    """Write every record of the manifest, in one snapshot. Ends with an lmdb.Error where LMDB itself sees damage."""
    import lmdb  # noqa: PLC0415  (found on the path that the parent passed)

    environment = lmdb.open(path, subdir=False, readonly=True, create=False, lock=False, max_dbs=8, readahead=True)
    output, count = bytearray(), 0
    names = {code: environment.open_db(name, create=False) for code, name in DATABASES}
    with environment.begin(buffers=True) as transaction:
        for code, database in names.items():
            first = count
            for key, value in transaction.cursor(database):
                output += RECORD.pack(code, len(key), len(value))
                output += key
                output += value
                count += 1
                if len(output) >= FLUSH_BYTES:
                    sys.stdout.buffer.write(output)
                    output.clear()
            if count - first != transaction.stat(database)["entries"]:
                sys.exit("a damaged page hides records")
    output += RECORD.pack(END, 0, COUNT.size) + COUNT.pack(count)
    sys.stdout.buffer.write(output)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # dying here is expected, and nothing to keep a copy of
    sys.path += sys.argv[2:]
    main(sys.argv[1])
