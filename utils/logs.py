"""What a run leaves for people: ``log.txt``, ``log.png`` and lines on the terminal."""
import io
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from utils.files import write_atomically

COLUMNS = ("Learning Rate", "Train Loss", "Valid Loss", "Train Acc.", "Valid Acc.", "Train Forward Firing Rate",
           "Train Backward Firing Rate", "Test Forward Firing Rate")
PLAIN_INTERVAL = 30.0  # seconds between lines where no terminal shows a bar


def write_log(folder: Path, rows: Sequence[Sequence[float]]) -> None:
    """Write ``log.txt``, one tab-separated row per epoch, and ``log.png``; both are replaced as a whole."""
    lines = ["\t".join(COLUMNS), *("\t".join(f"{value:.6f}" for value in row) for row in rows)]
    write_atomically(folder / "log.txt", ("\n".join(lines) + "\n").encode())
    write_atomically(folder / "log.png", _plot(rows))


def read_log(folder: Path) -> list[list[float]]:
    """The rows of ``log.txt``; none if there is no such file, or one with other columns."""
    path = folder / "log.txt"
    header, *lines = path.read_text(errors="replace").splitlines() if path.exists() else [""]
    rows = [line.split("\t") for line in lines] if header.strip() == "\t".join(COLUMNS) else []
    try:
        return [[float(value) for value in row] for row in rows if len(row) == len(COLUMNS)]
    except ValueError:
        return []


def _plot(rows: Sequence[Sequence[float]]) -> bytes:
    """Curves of loss, accuracy and firing rates over epochs, as a PNG."""
    from matplotlib.figure import Figure  # takes a second to import, which only a run that draws need wait for

    figure = Figure(figsize=(12, 3.5), layout="constrained")
    panels = (("Loss", ("Train Loss", "Valid Loss")), ("Accuracy (%)", ("Train Acc.", "Valid Acc.")),
              ("Firing rate (spikes per step)", COLUMNS[5:]))
    for axes, (title, names) in zip(figure.subplots(1, len(panels)), panels):
        for name in names:
            axes.plot(range(1, len(rows) + 1), [row[COLUMNS.index(name)] for row in rows], ".-", label=name)
        axes.set(xlabel="Epoch", title=title)
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def describe(results: dict[str, Any]) -> str:
    """Loss, accuracies and firing rates of an epoch in one line."""
    parts = [f"loss {results['loss']:.4f}", f"top-1 {results['top1']:.2f}%", f"top-5 {results['top5']:.2f}%",
             f"forward rate {results['forward_rate']:.4f}"]
    if results.get("backward_rate") is not None:
        parts.append(f"backward rate {results['backward_rate']:.4f}")
    return ", ".join(parts)


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

    def report(self, results: dict[str, Any]) -> None:
        """Show the results so far."""
        self.reported = time.monotonic()
        if self.terminal:
            self.bar.set_postfix_str(describe(results))
        else:
            say(f"{self.label}, batch {self.done}/{self.total}: {describe(results)}")
