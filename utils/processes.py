"""Processes: how many cores they may use, who they are, and children that follow their parent."""
import os
import platform
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Self

PARENT_INTERVAL = 0.5  # seconds between looks at whether the parent is still there


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


def follow_parent(_: int = 0) -> None:
    """Make this child leave the signals that stop or save a run to its parent, which may need it for that first.

    Those reach it too where a terminal or a scheduler signals a whole group. It ends when the parent does, or asks for
    it by SIGTERM. Serves as ``worker_init_fn`` of a loader, which passes the number of the worker.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()

    def obey() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # before there are threads that could get it
        threading.Thread(target=obey, daemon=True).start()
    at_end_of_parent(lambda: os._exit(1))


def at_end_of_parent(act: Callable[[], None]) -> None:
    """Call ``act``, in a thread of its own, when the process that started this one is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_INTERVAL)
        act()

    threading.Thread(target=watch, daemon=True).start()
