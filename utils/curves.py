"""Curves of runs, drawn together from their ``metrics.jsonl``, and a table of firing rates along each."""
import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils import figures, metrics
from utils.pages import table

Row = Mapping[str, Any]
TRAINING, TEST = "train", "test"  # phases of rows


def draw(runs: Mapping[str, Sequence[Row]], against: str) -> Any:
    """Loss and accuracy of all runs, and of each one the firing rates of its layers.

    Args:
        runs: rows by name; against: 'iterations' or 'seconds' of training.
    """
    figure, axes = figures.new_figure(1 + len(runs), 2, width=12, height=3.6 * (1 + len(runs)), sharex=True)
    for number, (name, rows) in enumerate(runs.items()):
        places = _seconds(rows) if against == "seconds" else [row["iteration"] for row in rows]
        style = figures.style(number, len(runs))
        for own, kind in zip(axes[0], ("loss", "top1")):
            for phase, look in ((TRAINING, {"linestyle": "-", "marker": ""}), (TEST, {"linestyle": "--"})):
                own.plot(*figures.points(places, _values(rows, phase, kind)), **style | look, label=f"{name}, {phase}")
        for own, direction in zip(axes[1 + number], figures.DIRECTIONS):
            rates = _values(rows, TRAINING, f"{direction}_rates")
            layers = len(next(filter(None, rates), []))
            lines = figures.by_layer([[rate and rate[layer] for rate in rates] for layer in range(layers)])
            figures.draw_lines(own, places, lines, legend=True, title=f"{name}: {direction} rates",
                               ylabel="spikes per unit and step", yscale="log" if layers else "linear")
    for own, label in zip(axes[0], ("loss", "accuracy (%)")):
        own.set(title=label.partition(" ")[0].capitalize(), ylabel=label)
        own.grid(alpha=0.3)
    for own in axes.flat:
        own.set_xlabel("iteration" if against == "iterations" else "seconds of training")
        own.tick_params(labelbottom=True)
    axes[0, 0].legend(fontsize="small")
    return figure


def rates_table(rows: Sequence[Row], count: int) -> str:
    """Loss, training accuracy and rates of every layer at ``count`` rows, evenly spread, the last among them."""
    rows = [row for row in rows if row["phase"] == TRAINING]
    chosen = sorted({round((i + 1) * len(rows) / count) - 1 for i in range(count)} - {-1})

    def rates(row: Row, direction: str) -> str:
        return " ".join(map(_two_digits, row.get(f"{direction}_rates") or [])) or "–"

    return table(["iteration", "loss", "training accuracy", "forward", "backward, before the saturation mask"],
                 [[rows[i]["iteration"], f"{rows[i]['loss']:.3f}", f"{rows[i]['top1']:.1f}%",
                   rates(rows[i], "forward"), rates(rows[i], "backward")] for i in chosen])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m utils.report")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of a run")
    parser.add_argument("--against", choices=("iterations", "seconds"), default="iterations", help="what to draw over")
    parser.add_argument("--rows", type=int, default=12, help="rows of the table of each run (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("curves.png"), help="picture (default: %(default)s)")
    options = parser.parse_args()
    if options.rows < 1:
        parser.error("--rows must be at least 1")
    try:
        runs = {str(folder): metrics.read(folder) for folder in options.folders}
    except OSError as error:
        parser.exit(1, f"error: {error}\n")
    for name, rows in runs.items():
        if not rows:
            parser.exit(1, f"error: {Path(name, metrics.NAME)} holds no rows of metrics: name the folder of a run that "
                           "has written some\n")
        print(f"**{name}**, rates in spikes per unit and step\n\n{rates_table(rows, options.rows)}\n")
    figures.save(draw(runs, options.against), options.output)
    print(f"curves: {options.output}")


def _values(rows: Sequence[Row], phase: str, kind: str) -> list[Any]:
    """Of every row, None where it is of the other phase."""
    return [row.get(kind) if row["phase"] == phase else None for row in rows]


def _seconds(rows: Sequence[Row]) -> list[float]:
    """Seconds of training up to each row; rows of training say how many an iteration took."""
    found, total, before = [], 0.0, 0
    for row in rows:
        if row["phase"] == TRAINING:
            total, before = total + (row["iteration"] - before) * row["seconds"], row["iteration"]
        found.append(total)
    return found


def _two_digits(rate: float) -> str:
    """Such as .022, without a leading zero."""
    return "0" if rate == 0 else f"{rate:.{min(7, max(1, 1 - math.floor(math.log10(rate))))}f}".lstrip("0")
