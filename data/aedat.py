"""AEDAT 2.0, the file format in which jAER stores the events of a DVS128 camera.

A file is a header of text lines that start with ``#``, then one pair of big-endian uint32 for each event: an address
and a timestamp in microseconds. Bits of the address, from the lowest: 0 polarity, 1-7 column, 8-14 row.
"""
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.errors import UserError

SENSOR = 128  # pixels of a side
MAGIC = b"#!AER-DAT2.0"
EVENT = np.dtype([("address", ">u4"), ("timestamp", ">u4")])

# Events may start with the byte '#' too, so a header line must be text as well: no control byte but tab. An event
# before 2^27 us (2 minutes) has one, the first byte of its timestamp, after 4 bytes of address: with a last line longer
# than that, no event is within the header. The end of the file may end it, lest a header cut off there be taken for
# events.
LINE = rb"#[^\x00-\x08\x0a-\x1f]"
HEADER = re.compile(rb"(?:(?:%b*\r?\n)*%b{4,}\r?(?:\n|\Z))?" % (LINE, LINE))


class Events(NamedTuple):
    """Events of a recording in the order of the file, four int64 arrays of shape (events,)."""

    x: np.ndarray  # column, in [0, 128)
    y: np.ndarray  # row, in [0, 128)
    polarity: np.ndarray  # 0 or 1, where 1 stands for the address bit 0 unset
    timestamp: np.ndarray  # microseconds, in [0, 2^32)


def parse_aedat(contents: bytes, name: str) -> Events:
    """Events of the contents of an AEDAT 2.0 file, whose name serves for messages; a UserError where the header is
    missing or announces another format, the last event is cut off, or there is none."""
    if not contents.startswith(MAGIC):
        raise UserError(f"{name} does not start with {MAGIC.decode()!r} and is no AEDAT 2.0 recording: "
                         f"replace it with the original file")
    start = HEADER.match(contents).end()
    excess = (len(contents) - start) % EVENT.itemsize
    if start == 0 or excess:
        cause = "its first line has no end" if start == 0 else f"{excess} bytes of a cut-off event at its end"
        raise UserError(f"{name} is truncated or damaged ({cause}): fetch or extract it again")
    if start == len(contents):
        raise UserError(f"{name} holds no events: fetch or extract it again")
    stored = np.frombuffer(contents, EVENT, offset=start)
    address, timestamp = stored["address"].astype(np.int64), stored["timestamp"].astype(np.int64)
    return Events(127 - ((address & 0xFE) >> 1), (address & 0x7F00) >> 8, 1 - (address & 1), timestamp)


def read_aedat(path: str | Path) -> Events:
    """Events of an AEDAT 2.0 file; errors as of :func:`parse_aedat`."""
    return parse_aedat(Path(path).expanduser().read_bytes(), str(path))
