"""Bars on a terminal, and plain lines elsewhere."""
import errno
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")

PLAIN_INTERVAL = 30.0  # seconds between lines where no terminal shows a bar
READER_GONE = (errno.EPIPE, errno.EIO)  # of a pipe, of a terminal


def say(line: str) -> None:
    """Print one line, above a progress bar if there is one, at once. Where it cannot be printed, work goes on."""
    if sys.stdout is None:  # closed before the program began
        return
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        tqdm.write(line.encode(encoding, "backslashreplace").decode(encoding), file=sys.stdout)
        sys.stdout.flush()
    except OSError as error:
        if error.errno in READER_GONE:  # nor is anybody there to read what Python writes when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Progress:
    """Iterate over the parts of some work with a bar on a terminal, and with a plain line now and then elsewhere.

    Args:
        items: what to iterate over; label: what is going on, such as 'epoch 3/60'.
        total: number of parts in all, if known; done: how many of them are behind us already.
        quiet: no plain lines; unit: of parts, in plain lines, and 'B' for bytes; size: of an item, in parts.
    """

    def __init__(self, items: Iterable[T], *, label: str, total: int | None = None, done: int = 0, quiet: bool = False,
                 unit: str = "batch", size: Callable[[T], int] = lambda item: 1) -> None:
        self.items, self.label, self.total, self.done, self.quiet = items, label, total, done, quiet
        self.unit, self.size = unit, size
        self.terminal = all(stream is not None and stream.isatty() for stream in (sys.stderr, sys.stdout))
        self.bar = tqdm(desc=label, total=total, initial=done, disable=not self.terminal, leave=False,
                        dynamic_ncols=True, unit=unit, unit_scale=unit == "B")
        self.reported = time.monotonic()

    def __iter__(self) -> Iterator[T]:
        with self.bar:
            for item in self.items:
                self.done += self.size(item)
                yield item
                self.bar.update(self.size(item))

    @property
    def due(self) -> bool:
        """Whether it is time to report; where that means to read the meters, it waits for the device."""
        interval = 1.0 if self.terminal else PLAIN_INTERVAL
        return (self.terminal or not self.quiet) and time.monotonic() - self.reported >= interval

    def report(self, results: str = "") -> None:
        """Show how far it is, and the results so far, if any."""
        self.reported = time.monotonic()
        if self.terminal:
            self.bar.set_postfix_str(results)
            return
        numbers = [number for number in (self.done, self.total) if number is not None]
        share = "/".join(tqdm.format_sizeof(n, "B") if self.unit == "B" else str(n) for n in numbers)
        unit = "" if self.unit == "B" else f"{self.unit} "
        say(f"{self.label}, {unit}{share}" + (f": {results}" if results else ""))


def follow(items: Iterable[T], *, label: str, total: int, unit: str, **settings: Any) -> Iterator[T]:
    """The items, while :class:`Progress`, which see, reports by itself: at the start, now and then, at the end."""
    progress = Progress(items, label=label, total=total, unit=unit, **settings)
    progress.report()
    for item in progress:
        yield item
        if progress.due or progress.done == total:
            progress.report()
