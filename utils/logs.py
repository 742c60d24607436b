"""What a run leaves for people: ``log.txt`` and ``log.png``, and its results in words."""
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.files import write_atomically

COLUMNS = ("Learning Rate", "Train Loss", "Valid Loss", "Train Acc.", "Valid Acc.", "Train Forward Firing Rate",
           "Train Backward Firing Rate", "Test Forward Firing Rate")


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
