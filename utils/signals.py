"""SIGTERM, SIGHUP, SIGINT and SIGUSR1 as requests, which a training loop honours between two iterations."""
import os
import signal
import socket
import threading
import time
from typing import Any

from utils.progress import say

STOPPING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
ECHO = 1.0  # seconds: a Ctrl-C may reach a process twice, from the terminal and from its launcher


class Stopped(Exception):
    """Raised once a signal has asked the run to end; ``status`` is what shells make of that."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


class Signals:
    """Context in which SIGTERM, SIGHUP and SIGINT ask for a stop, SIGUSR1 for a checkpoint; a second SIGINT kills.

    A SIGHUP that is ignored from the start, as under nohup, stays so. In a thread other than the main one Python lets
    nobody hear of signals, so there they keep their effect.

    Python runs its signal handlers in the main thread, between two instructions, so only after a simulation that may
    take seconds. Here a thread hears of signals at once, from the interpreter's wake-up socket, and only sets flags.
    """

    def __init__(self) -> None:
        self.stop: int | None = None
        self.save = False
        self._asked = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is not threading.main_thread():
            say("note: in a thread a run cannot hear of signals, so none of them saves it")
            return self
        self._receiver, sender = socket.socketpair()
        sender.setblocking(False)
        self._sender, self._wakeup_before = sender, signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        for number in (*STOPPING, signal.SIGUSR1):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, lambda *_: None)  # without one the default action is taken
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._before:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._wakeup_before)
            self._sender.close()

    def save_wanted(self) -> bool:
        """Whether SIGUSR1 asked for a checkpoint since the last call."""
        wanted, self.save = self.save, False
        return wanted

    def _listen(self) -> None:
        while received := self._receiver.recv(1):
            number = received[0]
            if number == signal.SIGUSR1:
                self.save = True
            elif number == self.stop == signal.SIGINT:
                if time.monotonic() - self._asked > ECHO:
                    os._exit(130)  # files are replaced as a whole, so there is nothing to put in order
            elif number in STOPPING:
                self.stop, self._asked = number, time.monotonic()
                say(f"{signal.Signals(number).name} received: stopping after this iteration"
                    + (" (press Ctrl-C again to stop at once, without saving)" if number == signal.SIGINT else ""))


def ignore_save_requests() -> None:
    """Let SIGUSR1, whose default is to kill, pass while there is nothing to save yet."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
