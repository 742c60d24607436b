"""Curves of runs, drawn together from their ``metrics.jsonl``, and a table of firing rates along each."""
import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils import figures
from utils.pages import table

METRICS = "metrics.jsonl"
Row = Mapping[str, Any]


def read(folder: Path) -> list[Row]:
    """The rows of a run's metrics.

    Raises:
        ValueError: there are none, or a line is no row.
    """
    path = folder / METRICS if folder.is_dir() else folder
    if not path.exists():
        raise ValueError(f"{folder} has no {METRICS}: name the folder of a run")
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        if rows and all("iteration" in row for row in rows):
            return rows
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path} holds a line that is no row of metrics ({error})") from error
    raise ValueError(f"{path} holds no rows of metrics")


def elapsed(rows: Sequence[Row]) -> list[float]:
    """Seconds of training up to each row."""
    total, before, found = 0.0, 0, []
    for row in rows:
        total += (row["iteration"] - before) * row.get("seconds", 0)
        before = row["iteration"] if "seconds" in row else before
        found.append(total)
    return found


def draw(runs: Mapping[str, Sequence[Row]], against: str) -> Any:
    """Loss and accuracy of all runs, and of each one the firing rates of its layers.

    Args:
        runs: rows by name; against: 'iterations' or 'seconds' of training.
    """
    figure, axes = figures.new_figure(1 + len(runs), 2, width=12, height=3.6 * (1 + len(runs)), sharex=True)
    for number, (name, rows) in enumerate(runs.items()):
        places = elapsed(rows) if against == "seconds" else [row["iteration"] for row in rows]
        style = figures.style(number, len(runs))
        for own, kind in zip(axes[0], ("loss", "top1")):
            own.plot(*figures.points(places, [row.get(kind) for row in rows]), color=style["color"], linewidth=1,
                     label=f"{name}, training")
            own.plot(*figures.points(places, [row.get(f"test_{kind}") for row in rows]),
                     **style | {"linestyle": "--", "markersize": 6}, label=f"{name}, test")
        for own, direction in zip(axes[1 + number], ("forward", "backward")):
            rates = [row.get(f"{direction}_rates") for row in rows]
            layers = len(next((rate for rate in rates if rate), []))
            figures.draw_lines(own, places, figures.by_layer([[rate and rate[layer] for rate in rates]
                                                              for layer in range(layers)]),
                               title=f"{name}: {direction} rates", yscale="log" if layers else "linear",
                               xlabel=_label(against), ylabel="spikes per unit and step")
        if layers:
            axes[1 + number, 1].legend(fontsize="small")
    for own, label in zip(axes[0], ("loss", "accuracy (%)")):
        own.set(title=label.partition(" ")[0].capitalize(), xlabel=_label(against), ylabel=label)
        own.grid(alpha=0.3)
    axes[0, 0].legend(fontsize="small")
    return figure


def rates_table(rows: Sequence[Row], count: int) -> str:
    """Loss, training accuracy and rates of every layer at ``count`` rows, evenly spread, the last among them."""
    rows = [row for row in rows if "forward_rates" in row]
    chosen = sorted({round((i + 1) * len(rows) / count) - 1 for i in range(count)} - {-1}) if rows else []
    return table(["iteration", "loss", "training accuracy", "forward", "backward, before the saturation mask"],
                 [[rows[i]["iteration"], f"{rows[i]['loss']:.3f}", f"{rows[i]['top1']:.1f}%",
                   *(" ".join(_digits(rate) for rate in rows[i].get(f"{direction}_rates") or []) or "–"
                     for direction in ("forward", "backward"))] for i in chosen])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m utils.report")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of a run")
    parser.add_argument("--against", choices=("iterations", "seconds"), default="iterations", help="what to draw over")
    parser.add_argument("--rows", type=int, default=12, help="rows of the table of each run (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("curves.png"),
                        help="picture to write (default: %(default)s)")
    options = parser.parse_args()
    if options.rows < 1:
        parser.error("--rows must be at least 1")
    try:
        runs = {str(folder): read(folder) for folder in options.folders}
        figures.save(draw(runs, options.against), options.output)
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    for name, rows in runs.items():
        print(f"**{name}**, rates in spikes per unit and step\n\n{rates_table(rows, options.rows)}\n")
    print(f"curves: {options.output}")


def _label(against: str) -> str:
    return "iteration" if against == "iterations" else "seconds of training"


def _digits(rate: float) -> str:
    """Two digits, without a leading zero: .022."""
    return "0" if rate == 0 else f"{rate:.{min(7, max(1, 1 - math.floor(math.log10(rate))))}f}".lstrip("0")
