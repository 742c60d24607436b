"""Processes: how many cores they may use, and who they are."""
import os
import platform
from pathlib import Path
from typing import NamedTuple, Self


def cores() -> int:
    """Number of processor cores that this process may use: on a shared machine fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Process(NamedTuple):
    """A process, named such that no other has the same name, on whichever machine, before or after.

    host: name of its computer, for people; machine: boot and process namespace in which ``pid`` means something;
    started: when, in clock ticks since the boot, or 0 where that cannot be read.
    """

    host: str
    machine: str
    pid: int
    started: int

    @classmethod
    def this(cls) -> Self:
        """The process that asks."""
        boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
        known = boot.exists() and namespace.exists()
        machine = f"{boot.read_text().strip()} {namespace.stat().st_ino}" if known else platform.node()
        return cls(platform.node(), machine, os.getpid(), _started(os.getpid()))

    def alive(self) -> bool | None:
        """Whether it still runs; None where this cannot be known from here, as on another machine."""
        if self.machine != Process.this().machine:
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # it runs, as another user's
        started = _started(self.pid)
        return started == self.started if started and self.started else None


def _started(pid: int) -> int:
    """When a process started, in clock ticks since the boot; -1 where it has ended, 0 where that cannot be read."""
    try:
        # The name of the program, in brackets, may hold anything; the state is the first word after it.
        words = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0
    return -1 if words[0] in "ZX" else int(words[19])
