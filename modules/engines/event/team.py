"""Threads that share the samples of a batch."""
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

# Turns of each thread between two meetings: enough for one to take over what another has no time for.
TURNS = 16

Share = Callable[[Callable[[Any, range], None], list[range]], None]


def team(make_tools: Callable[[], Any]) -> Share:
    """A function that calls ``work(tools, chunk)`` for every chunk of samples, in as many threads as PyTorch has, with
    what ``make_tools`` made for each; the calling thread is one of them."""
    threads = torch.get_num_threads()
    tools, helpers = [make_tools() for _ in range(threads)], _helpers(threads - 1, os.getpid())

    def share(work: Callable[[Any, range], None], chunks: list[range]) -> None:
        left = iter(chunks)

        @torch.no_grad()  # which is a matter of each thread
        def take_turns(own: Any) -> None:
            for chunk in left:
                work(own, chunk)

        # Of this thread, and of those that call PyTorch for the first time: more would only wait, and keep cores busy.
        torch.set_num_threads(1)
        try:
            others = [helpers.submit(take_turns, own) for own in tools[1:len(chunks)]]
            take_turns(tools[0])
            for other in others:
                other.cancel() or other.result()  # one that has not begun has nothing left to do
        finally:
            torch.set_num_threads(threads)

    return share


@functools.cache
def _helpers(number: int, process: int) -> ThreadPoolExecutor:
    """Threads besides the calling one of a process, as a fork has none of those that it knows of. They are kept: to
    start one takes milliseconds while PyTorch's own keep the cores busy, waiting for more to do."""
    return ThreadPoolExecutor(max(1, number))


def chunks(batch: int, together: int) -> list[range]:
    """The samples of a batch, in chunks: some for each thread, of at least so many samples if all threads get one."""
    share = -(-batch // torch.get_num_threads())
    size = max(-(-share // TURNS), min(together, share), 1)
    return [range(begin, min(begin + size, batch)) for begin in range(0, batch, size)]
