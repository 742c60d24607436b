"""What a run leaves for people: ``log.txt`` and ``log.png``, and its results in words."""
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils import figures, metrics
from utils.files import write_atomically
from utils.progress import say

LOG, PLOT = "log.txt", "log.png"
COLUMNS = ("Learning Rate", "Train Loss", "Valid Loss", "Train Acc.", "Valid Acc.", "Train Forward Firing Rate",
           "Train Backward Firing Rate", "Test Forward Firing Rate")


def write_log(folder: Path, rows: Sequence[Sequence[float]]) -> None:
    """Write ``log.txt``, one tab-separated row per epoch, and ``log.png``; both are replaced as a whole.

    An OSError, if ``log.txt`` cannot be written; a picture that cannot be drawn is worth a warning, not a run.
    """
    lines = ["\t".join(COLUMNS), *("\t".join(f"{value:.6f}" for value in row) for row in rows)]
    write_atomically(folder / LOG, ("\n".join(lines) + "\n").encode())
    try:
        figures.save(_draw(rows, metrics.read(folder)), folder / PLOT)
    except Exception as error:  # of matplotlib and all that it depends on, which may raise anything
        say(f"warning: {folder / PLOT} could not be drawn ({type(error).__name__}: {error}); the numbers are in "
            f"{LOG} and {metrics.NAME}")


def read_log(folder: Path) -> list[list[float]]:
    """The rows of ``log.txt``; none if there is no such file, or one with other columns."""
    path = folder / LOG
    header, *lines = (path.read_text(errors="replace") if path.exists() else "").splitlines() or [""]
    rows = [line.split("\t") for line in lines] if header.strip() == "\t".join(COLUMNS) else []
    try:
        return [[float(value) for value in row] for row in rows if len(row) == len(COLUMNS)]
    except ValueError:
        return []


def _draw(rows: Sequence[Sequence[float]], measured: Sequence[dict[str, Any]]) -> Any:
    """Curves over epochs, from rows of ``log.txt``, and of backward rates over iterations, from ``metrics.jsonl``."""
    panels = {"Loss": ("Train Loss", "Valid Loss"), "Accuracy (%)": ("Train Acc.", "Valid Acc."),
              "Firing rate (spikes per step)": COLUMNS[5:]}
    # Drawn after every epoch: to search for the places of what is known would take a third of the time.
    figure, axes = figures.new_figure(2, 2, width=14, height=7, layout=None)
    figure.subplots_adjust(left=0.045, right=0.915, bottom=0.07, top=0.95, wspace=0.57, hspace=0.3)
    for own, (title, names) in zip(axes.flat, panels.items()):
        lines = {name: [row[COLUMNS.index(name)] for row in rows] for name in names}
        figures.draw_lines(own, range(1, len(rows) + 1), lines, title=title, xlabel="Epoch")
        own.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    spiking = [row for row in measured if "backward_rates" in row]
    layers = figures.by_layer(list(zip(*(row["backward_rates"] for row in spiking))))
    figures.draw_lines(axes[1, 1], [row["iteration"] for row in spiking], layers, xlabel="Iteration",
                       title="Backward firing rate (spikes per step)" if layers else "No backward spikes were recorded")
    for own in axes.flat:
        figures.explain(own)
    return figure


def describe(results: dict[str, Any]) -> str:
    """Loss, accuracies and firing rates of an epoch in one line."""
    backward = results.get("backward_rate")
    return (f"loss {results['loss']:.4f}, top-1 {results['top1']:.2f}%, top-5 {results['top5']:.2f}%, forward rate "
            f"{results['forward_rate']:.4f}" + ("" if backward is None else f", backward rate {backward:.4f}"))
