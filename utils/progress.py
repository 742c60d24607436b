"""Bars on a terminal, and plain lines elsewhere."""
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

PLAIN_INTERVAL = 30.0  # seconds between lines where no terminal shows a bar


def say(line: str) -> None:
    """Print one line, above a progress bar if there is one, at once."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


class Progress:
    """Iterate over batches with a bar on a terminal, and with a plain line now and then elsewhere.

    Args:
        batches: what to iterate over; label: what is going on, such as 'epoch 3/60'.
        total: number of batches in all; done: how many of them are behind us already.
        quiet: no plain lines.
    """

    def __init__(self, batches: Iterable[Any], *, label: str, total: int, done: int = 0, quiet: bool = False) -> None:
        self.label, self.total, self.done, self.quiet = label, total, done, quiet
        self.terminal = sys.stderr.isatty() and sys.stdout.isatty()
        self.bar = tqdm(batches, desc=label, total=total, initial=done, disable=not self.terminal, leave=False,
                        dynamic_ncols=True)
        self.reported = time.monotonic()

    def __iter__(self) -> Iterator[Any]:
        for batch in self.bar:
            self.done += 1
            yield batch

    @property
    def due(self) -> bool:
        """Whether it is time to read the meters, which waits for the device."""
        interval = 1.0 if self.terminal else PLAIN_INTERVAL
        return (self.terminal or not self.quiet) and time.monotonic() - self.reported >= interval

    def report(self, results: str) -> None:
        """Show the results so far."""
        self.reported = time.monotonic()
        if self.terminal:
            self.bar.set_postfix_str(results)
        else:
            say(f"{self.label}, batch {self.done}/{self.total}: {results}")
