"""The AEDAT 2.0 reader, against bytes written by hand."""
import struct

import numpy as np
import pytest

from data.aedat import Events, parse_aedat
from data.dvs_files import Recording
from tests.recordings import write_aedat

HEADER = b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n#\r\n#\tcreated M\xe4rz 2017\r\n"


def test_address_bits():
    """Column, row and polarity come from their own bits, mirrored and inverted; the rest is void."""
    #         address      x    y    polarity
    cases = [(0x00000000, 127, 0, 1),
             (0x00000001, 127, 0, 0),
             (0x000000FE, 0, 0, 1),
             (0x00000002, 126, 0, 1),
             (0x00007F00, 127, 127, 1),
             (0x00000100, 127, 1, 1),
             (0x00001235, 101, 18, 0),
             (0xFFFF80FF, 0, 0, 0)]
    contents = HEADER + b"".join(struct.pack(">II", case[0], 1000 + i) for i, case in enumerate(cases))
    events = parse_aedat(contents, "by hand")
    assert np.array_equal(np.stack(events[:3], axis=1), [case[1:] for case in cases])
    assert np.array_equal(events.timestamp, 1000 + np.arange(len(cases)))


def test_byte_order():
    """Numbers are big-endian, and timestamps unsigned."""
    assert parse_aedat(HEADER + bytes.fromhex("00000000 80000001"), "by hand").timestamp == [0x80000001]


@pytest.mark.parametrize("first", ["23200001 00000a23", "23204142 00410d0a", "23410d0a 00000001", "230a230a 00000001"])
def test_data_that_looks_like_a_header(first):
    """Events whose first byte is '#' are not skipped as a header line, even where bytes of a line end follow."""
    events = parse_aedat(HEADER + bytes.fromhex(first) + bytes.fromhex("00000000 00000002"), "by hand")
    assert events.timestamp.tolist() == [int(first.split()[1], 16), 2]


def test_plain_line_ends():
    """A header whose lines end without carriage return is read too."""
    contents = HEADER.replace(b"\r\n", b"\n") + struct.pack(">II", 0, 7)
    assert parse_aedat(contents, "by hand").timestamp.tolist() == [7]


def test_writing(tmp_path):
    """What is written is read back, for all addresses."""
    x, y, polarity = (values.ravel() for values in np.mgrid[0:128, 0:128, 0:2])
    events = Events(x, y, polarity, np.arange(len(x)) * 131071)
    write_aedat(tmp_path / "all.aedat", events)
    assert all(np.array_equal(*pair) for pair in zip(Recording(tmp_path / "all.aedat").read(), events))


def test_values_out_of_range_are_refused(tmp_path):
    """A column beyond the sensor is not folded into another address."""
    with pytest.raises(ValueError, match=r"x must lie in \[0, 128\)"):
        write_aedat(tmp_path / "bad.aedat", Events(*np.array([[128], [0], [0], [0]])))


@pytest.mark.parametrize("contents, cause", [
    (b"", "no AEDAT 2.0 recording"),
    (b"<html>not found</html>", "no AEDAT 2.0 recording"),
    (HEADER.replace(b"2.0", b"3.1") + bytes(8), "no AEDAT 2.0 recording"),
    (bytes(800), "no AEDAT 2.0 recording"),
    (HEADER, "no events"),
    (HEADER[:24], "no events"),
    (HEADER[:14] + b"# This is a raw", "no events"),
    (b"#!AER-DAT2.0" + bytes(16), "truncated"),
    (HEADER + bytes(8 * 5 + 3), "truncated or damaged .3 bytes"),
])
def test_bad_files_are_named(tmp_path, contents, cause):
    """Whatever is not a whole recording is refused in words that name the file, the cause and what to do."""
    path = tmp_path / "cifar10_cat_7.aedat"
    path.write_bytes(contents)
    with pytest.raises(ValueError, match=cause) as refusal:
        Recording(path).read()
    assert str(path) in str(refusal.value) and ("again" in str(refusal.value) or "replace" in str(refusal.value))
