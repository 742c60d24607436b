"""Threads that share the samples of a batch."""
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

# Turns of each thread between two meetings: enough for one to take over what another has no time for.
TURNS = 8


class Team:
    """Threads that share the samples of a batch, some at a time; the calling thread is one of them.

    They live as long as one simulation, so that processes may fork and simulations may run side by side.

    Args:
        tools: makes what each thread needs.
    """

    def __init__(self, tools: Callable[[], Any]) -> None:
        self._tools = [tools() for _ in range(torch.get_num_threads())]
        self._pool = ThreadPoolExecutor(len(self._tools))

    def __enter__(self) -> "Team":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def share(self, work: Callable[[Any, range], None], chunks: list[range]) -> None:
        """Call ``work`` with a thread's tools for every chunk of samples."""
        left = iter(chunks)

        def take_turns(tools: Any) -> None:
            for chunk in left:
                work(tools, chunk)

        with one_thread_each():
            others = [self._pool.submit(take_turns, tools) for tools in self._tools[1:len(chunks)]]
            take_turns(self._tools[0])
            for other in others:
                other.result()


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Let PyTorch use one thread for each of the team: more would keep processors busy with waiting for work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of this thread, and of those that call PyTorch for the first time
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def chunks(batch: int, together: int) -> list[range]:
    """The samples of a batch, in chunks: some for each thread, of at least so many samples if all threads get one."""
    share = -(-batch // torch.get_num_threads())
    size = max(-(-share // TURNS), min(together, share), 1)
    return [range(begin, min(begin + size, batch)) for begin in range(0, batch, size)]
