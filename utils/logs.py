"""What a run leaves for people: ``log.txt`` and ``log.png``, and its results in words."""
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils import metrics
from utils.files import write_atomically
from utils.progress import say

LOG, PLOT = "log.txt", "log.png"
COLUMNS = ("Learning Rate", "Train Loss", "Valid Loss", "Train Acc.", "Valid Acc.", "Train Forward Firing Rate",
           "Train Backward Firing Rate", "Test Forward Firing Rate")


def write_log(folder: Path, rows: Sequence[Sequence[float]]) -> None:
    """Write ``log.txt``, one tab-separated row per epoch, and ``log.png``; both are replaced as a whole.

    A picture that cannot be drawn is worth a warning, not a run.

    Raises:
        OSError: ``log.txt`` cannot be written.
    """
    lines = ["\t".join(COLUMNS), *("\t".join(f"{value:.6f}" for value in row) for row in rows)]
    write_atomically(folder / LOG, ("\n".join(lines) + "\n").encode())
    try:
        write_atomically(folder / PLOT, _plot(rows, metrics.read(folder)))
    except Exception as error:  # of matplotlib and all that it depends on, which may raise anything
        say(f"warning: {folder / PLOT} could not be drawn ({type(error).__name__}: {error}); the numbers are in "
            f"{LOG} and {metrics.NAME}")


def read_log(folder: Path) -> list[list[float]]:
    """The rows of ``log.txt``; none if there is no such file, or one with other columns."""
    path = folder / LOG
    header, *lines = path.read_text(errors="replace").splitlines() if path.exists() else [""]
    rows = [line.split("\t") for line in lines] if header.strip() == "\t".join(COLUMNS) else []
    try:
        return [[float(value) for value in row] for row in rows if len(row) == len(COLUMNS)]
    except ValueError:
        return []


def _plot(rows: Sequence[Sequence[float]], measured: Sequence[dict[str, Any]]) -> bytes:
    """Curves over epochs, and of the backward firing rates over iterations, as a PNG; no matter which backend is set.

    Args:
        rows: of ``log.txt``; measured: of ``metrics.jsonl``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, which only a run that draws waits for
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 3.5), layout="constrained")
    panels = (("Loss", ("Train Loss", "Valid Loss")), ("Accuracy (%)", ("Train Acc.", "Valid Acc.")),
              ("Firing rate (spikes per step)", COLUMNS[5:]))
    *over_epochs, over_iterations = figure.subplots(1, len(panels) + 1)
    for axes, (title, names) in zip(over_epochs, panels):
        for name in names:
            axes.plot(range(1, len(rows) + 1), [row[COLUMNS.index(name)] for row in rows], ".-", label=name)
        axes.set(xlabel="Epoch", title=title)
        axes.xaxis.get_major_locator().set_params(integer=True)
    rates = [(row["iteration"], row["backward_rates"]) for row in measured if "backward_rates" in row]
    for layer in range(len(rates[0][1]) if rates else 0):
        over_iterations.plot([iteration for iteration, _ in rates], [own[layer] for _, own in rates],
                             label=f"layer {layer}")
    over_iterations.set(xlabel="Iteration", title="Backward firing rate (spikes per step)")
    for axes in (*over_epochs, *([over_iterations] if rates else [])):
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def describe(results: dict[str, Any]) -> str:
    """Loss, accuracies and firing rates of an epoch in one line."""
    parts = [f"loss {results['loss']:.4f}", f"top-1 {results['top1']:.2f}%", f"top-5 {results['top5']:.2f}%",
             f"forward rate {results['forward_rate']:.4f}"]
    if results.get("backward_rate") is not None:
        parts.append(f"backward rate {results['backward_rate']:.4f}")
    return ", ".join(parts)
