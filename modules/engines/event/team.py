"""Threads that share the samples of a batch."""
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

# Turns of each thread between two meetings: enough for one to take over what another has no time for.
TURNS = 16

Share = Callable[[Callable[[Any, range], None], list[range]], None]


@contextmanager
def team(make_tools: Callable[[], Any]) -> Iterator[Share]:
    """Threads that live as long as one simulation, so that processes may fork and simulations may run side by side.

    Yields a function that calls ``work(tools, chunk)`` for every chunk of samples, with what ``make_tools`` made for a
    thread, of which the calling one is the first.
    """
    threads = torch.get_num_threads()
    tools = [make_tools() for _ in range(threads)]

    def share(work: Callable[[Any, range], None], chunks: list[range]) -> None:
        left = iter(chunks)

        def take_turns(own: Any) -> None:
            for chunk in left:
                work(own, chunk)

        # Of this thread, and of those that call PyTorch for the first time: more would only wait, and keep cores busy.
        torch.set_num_threads(1)
        try:
            others = [pool.submit(take_turns, own) for own in tools[1:len(chunks)]]
            take_turns(tools[0])
            for other in others:
                other.result()
        finally:
            torch.set_num_threads(threads)

    with ThreadPoolExecutor(threads) as pool:
        yield share


def chunks(batch: int, together: int) -> list[range]:
    """The samples of a batch, in chunks: some for each thread, of at least so many samples if all threads get one."""
    share = -(-batch // torch.get_num_threads())
    size = max(-(-share // TURNS), min(together, share), 1)
    return [range(begin, min(begin + size, batch)) for begin in range(0, batch, size)]
