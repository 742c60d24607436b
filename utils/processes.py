"""Children that follow their parent."""
import os
import signal
import threading
import time
from collections.abc import Callable

PARENT_INTERVAL = 0.5  # seconds between looks at whether the parent is still there


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
