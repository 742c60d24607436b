"""What is shown of progress, on a terminal and elsewhere, and that it never matters to the work."""
import io
import os
import subprocess
import sys
import time

import pytest

from tests.processes import environment
from utils import progress
from utils.progress import Progress, follow, say


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_plain_lines(monkeypatch, capsys):
    """Without a terminal: a line at the start, one each interval, one at the end, with numbers and unit."""
    monkeypatch.setattr(progress, "PLAIN_INTERVAL", 0.05)
    for item in follow(range(4), label="Counting", total=4, unit="sheep"):
        time.sleep(0.06 if item == 1 else 0)
    assert capsys.readouterr().out.splitlines() == ["Counting, sheep 0/4", "Counting, sheep 2/4", "Counting, sheep 4/4"]


def test_bytes(capsys):
    """Downloads count the bytes of their pieces; their number may be unknown."""
    list(follow([b"x" * 1000, b"x" * 2000], label="Getting", total=3000, unit="B", size=len))
    list(follow([b"x" * 1000], label="Getting", total=None, unit="B", size=len))
    assert capsys.readouterr().out.splitlines() == ["Getting, 0.00B/3.00kB", "Getting, 3.00kB/3.00kB", "Getting, 0.00B"]


def test_results(capsys, monkeypatch):
    """A training loop reports its results when it is time, with the batch that it is at; a quiet one never does."""
    monkeypatch.setattr(progress, "PLAIN_INTERVAL", 0.0)
    for quiet in (False, True):
        batches = Progress("ab", label="epoch 1/2", total=7, done=5, quiet=quiet)
        for _ in batches:
            if batches.due:
                batches.report("loss 3")
    assert capsys.readouterr().out.splitlines() == ["epoch 1/2, batch 6/7: loss 3", "epoch 1/2, batch 7/7: loss 3"]


def test_terminal(monkeypatch):
    """On a terminal a bar shows numbers and results, and goes when the work ends, also before its time."""
    shown, spoken = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(sys, "stdout", spoken)
    batches = Progress("ab", label="epoch 1/2", total=7, done=5)
    batches.reported -= 2
    for _ in batches:
        assert (batches.bar.n, batches.bar.total) == (5, 7)
        assert batches.due
        batches.report("loss 3")
        break
    assert "epoch 1/2" in shown.getvalue() and "loss 3" in shown.getvalue() and spoken.getvalue() == ""
    assert batches.bar.disable or not shown.getvalue().endswith("loss 3]")


def test_words_that_cannot_be_written(monkeypatch):
    """A terminal that knows no such letter gets its number."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    say("trained on ä")
    assert stream.buffer.getvalue() == b"trained on \\xe4\n"


@pytest.mark.parametrize("reader", ["gone", "full disk"])
def test_nobody_reads(reader):
    """A reader that went away, or a full disk under the output, does not end the work."""
    code = "from utils.progress import say\nfor i in range(3): say('x' * 70000)\nopen('/dev/stderr', 'w').write('done')"
    read, write = os.pipe()
    os.close(read)
    with open("/dev/full", "w") as full:
        output = write if reader == "gone" else full
        done = subprocess.run([sys.executable, "-c", code], env=environment(), stdout=output, stderr=subprocess.PIPE,
                              text=True, timeout=60)
    os.close(write)
    assert done.stderr.startswith("done") and "Traceback" not in done.stderr
    assert done.returncode == 0 or reader == "full disk"
