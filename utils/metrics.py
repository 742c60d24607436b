"""``metrics.jsonl``: what a run did, one JSON object every so many iterations and one for each evaluation.

A row is appended as a whole. What a killed run wrote beyond its last checkpoint, or half, is cut off when it goes on.
"""
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError
from utils.files import write_atomically
from utils.meters import Meters
from utils.progress import say

NAME = "metrics.jsonl"
NUMBERS = {"train": ("iteration", "loss", "top1", "seconds"), "test": ("iteration", "loss", "top1")}  # of every row


def append(folder: Path, rows: Sequence[Mapping[str, Any]], *, lasting: bool) -> None:
    """Add all rows to the file or, with an OSError, none; ``lasting`` waits until they would outlast a power cut."""
    # JSON has no number that is not finite.
    plain = (json.loads(json.dumps(row), parse_constant=lambda name: None) for row in rows)
    lines = "".join(json.dumps(row) + "\n" for row in plain).encode()
    with open(folder / NAME, "ab", buffering=0) as file:  # a buffer would hold on to what there is no room for
        end, left = file.tell(), memoryview(lines)
        try:
            while left:
                left = left[file.write(left):]
            if lasting:
                os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise


def read(folder: Path) -> list[dict[str, Any]]:
    """The rows of the file in a folder, none without a file; a UserError for a line that is none."""
    return [_row(line, place) for place, line in _lines(folder)]


def _lines(folder: Path) -> list[tuple[str, bytes]]:
    """The lines of the file, each with a name; what follows the last newline was torn, or is still being written,
    unless it ends as a row does: some editors leave the last newline out."""
    path = folder / NAME
    *lines, rest = path.read_bytes().split(b"\n") if path.exists() else [b""]
    lines += [rest] * rest.rstrip().endswith(b"}")
    return [(f"{path}, line {number},", line) for number, line in enumerate(lines, start=1)]


def _row(line: bytes, place: str) -> dict[str, Any]:
    """The row of a line, if all is there that others rely on."""
    try:
        row = json.loads(line)
        sum(row[name] for name in NUMBERS[row["phase"]])  # a KeyError or TypeError without one of them
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{place} is no row of metrics as a run writes them ({type(error).__name__}: {error}): correct "
                        "or delete that line") from error
    return row


def cut(source: Path, folder: Path, *, finished: int, running: bool, iteration: int, evaluated: bool) -> None:
    """Make the file in ``folder`` the rows of the one in ``source``: those of so many finished epochs, and, if another
    is ``running``, of that those up to an iteration and the evaluation after it.

    Rows of one's own stay, if they have an iteration; a line that is no row is left out, with a warning.
    """
    rows = []
    for place, line in _lines(source):
        try:
            row = json.loads(line)
            within = "epoch" not in row or row["epoch"] <= finished + running
            early = row.get("epoch", math.inf) <= finished or within and row["iteration"] < iteration
            now = within and row["iteration"] == iteration
        except (ValueError, KeyError, TypeError, RecursionError):
            say(f"warning: {place} is no row of metrics, and is left out")
            continue
        if early or now and (evaluated or row.get("phase") == "train"):
            rows.append(row)
    if rows or (folder / NAME).exists():
        write_atomically(folder / NAME, b"".join(json.dumps(row).encode() + b"\n" for row in rows))


class Clock:
    """Seconds per iteration, without waiting for the device: on a GPU its own events are read once they are past."""

    def __init__(self, device: torch.device, iteration: int) -> None:
        self.device = device
        self._start, self._iteration = self._now(), iteration

    def lap(self, iteration: int) -> Callable[[], float]:
        """End a lap after an iteration and begin the next; call what is returned for the seconds of one iteration."""
        start, end, iterations = self._start, self._now(), iteration - self._iteration
        self._start, self._iteration = end, iteration

        def seconds() -> float:
            if self.device.type != "cuda":
                return (end - start) / iterations
            end.synchronize()
            return start.elapsed_time(end) / 1000 / iterations

        return seconds

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class PendingRows:
    """The rows of a run that are still to be written to its folder, which ``make_folder`` makes if it is gone."""

    def __init__(self, folder: Path, make_folder: Callable[[], None]) -> None:
        self.folder, self._make_folder = folder, make_folder
        self._waiting: list[tuple[dict[str, Any], Meters, Callable[[], float] | None]] = []
        self._finished: list[dict[str, Any]] = []  # with their means, to be written by the process that leads
        self._lasting = True  # whether what is in the file would outlast a power cut

    def note(self, row: dict[str, Any], meters: Meters, seconds: Callable[[], float] | None = None) -> None:
        """Keep a row until :meth:`write` adds the means of ``meters`` and the ``seconds`` for an iteration."""
        self._waiting.append((row, meters, seconds))

    def write(self, merged: Callable[[Meters], Meters], *, leads: bool, lasting: bool) -> None:
        """Append what waits (this waits for the device); where that fails with an OSError, it goes on waiting.

        All processes of a job ask for the sums over all, which ``merged`` gives; the one that ``leads`` writes.
        """
        for row, meters, seconds in self._waiting:
            results = merged(meters).results()
            if leads:
                self._finished.append({**row, **{name: value for name, value in results.items() if value is not None},
                                       **({"seconds": seconds()} if seconds else {})})
        self._waiting.clear()  # before anything can fail: all processes ask for the same sums
        if leads and (self._finished or lasting and not self._lasting):
            self._make_folder()
            append(self.folder, self._finished, lasting=lasting)
            self._finished.clear()
            self._lasting = lasting
