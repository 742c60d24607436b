"""Children that follow their parent."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import environment

PARENT = """
import os, signal, sys, time
from utils.processes import at_end_of_parent, follow_parent
child = os.fork()
if child == 0:
    {follow}
    print(os.getpid(), flush=True)
    time.sleep(60)
    os._exit(0)
if {ask}:
    sys.stdin.readline()
    os.kill(child, signal.SIGTERM)
    print(os.waitpid(child, 0)[1], flush=True)
time.sleep(60)
"""


def family(follow: str, *, ask: bool = False) -> tuple[subprocess.Popen, int]:
    """A parent, and the number of its child, which begins with the code ``follow``."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT.format(follow=follow, ask=ask)], env=environment(),
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return parent, int(parent.stdout.readline())


def ended(pid: int, within: float = 5) -> bool:
    """Whether a process, a child of nobody here, has ended by then."""
    until = time.monotonic() + within
    try:
        while time.monotonic() < until:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":  # nobody took notice
                return True
            time.sleep(0.02)
    except (FileNotFoundError, ProcessLookupError):
        return True
    return False


@pytest.mark.parametrize("follow", ["follow_parent()", "at_end_of_parent(lambda: os._exit(1))",
                                    "at_end_of_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))"])
def test_children_end_with_a_killed_parent(follow):
    """No child outlives a parent that was killed outright."""
    parent, child = family(follow)
    parent.kill()
    parent.wait()
    assert ended(child)


def test_worker_heeds_its_parent_alone():
    """Signals that stop or save a run, sent to the whole group, leave a worker to its parent; the parent's ends it."""
    parent, child = family("follow_parent()", ask=True)
    try:
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM):
            os.kill(child, number)
        assert not ended(child, within=0.5)
        parent.stdin.write("now\n")
        parent.stdin.flush()
        assert parent.stdout.readline() == "0\n"  # status of the child: it ended by itself
    finally:
        parent.kill()
        parent.wait()
