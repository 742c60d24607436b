"""Curves of runs, drawn together from their ``metrics.jsonl``, and a table of firing rates along each."""
import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils import figures, metrics, mistakes
from utils.distributed import World
from utils.errors import UserError
from utils.pages import table
from utils.progress import say

Row = Mapping[str, Any]
PHASES = {"train": {"linestyle": "-", "marker": ""}, "test": {"linestyle": "--"}}  # of rows, and how to draw them
RATES = {f"{direction}_rates": f"{direction} rates" for direction in figures.DIRECTIONS}


def draw(runs: Mapping[str, Sequence[Row]], against: str) -> Any:
    """Loss and accuracy of runs (rows by name), rates of their layers, over 'iterations' or 'seconds' of training."""
    figure, axes = figures.new_figure(1 + len(runs), 2, width=13, height=3.6 * (1 + len(runs)), sharex=True)
    place = "elapsed" if against == "seconds" else "iteration"
    for number, (folder, rows) in enumerate(runs.items()):
        # As it is: a dollar begins a formula in a picture, and what an underscore begins is left out of legends.
        name = ("./" * folder.startswith("_") + folder).replace("$", r"\$")
        phases = {phase: [row for row in _timed(rows) if row["phase"] == phase] for phase in PHASES}
        for panel, kind in zip(axes[0], ("loss", "top1")):
            for phase, look in PHASES.items():
                panel.plot(*_points(phases[phase], place, kind), **figures.style(number, len(runs)) | look,
                           label=f"{name}, {phase}")
        for panel, kind in zip(axes[1 + number], RATES):
            x, rates = _points(phases["train"], place, kind)
            if rates:
                figures.draw_lines(panel, x, figures.by_layer(list(zip(*rates))), yscale="log",
                                   title=f"{name}: {RATES[kind]}", ylabel="spikes per unit and step, if any")
            else:  # IDE has no backward rates
                panel.set_axis_off()
        for panel in [panel for panel in axes[1 + number] if panel.lines][-1:]:
            figures.explain(panel)
    axes[0, 0].set(title="Loss", ylabel="loss")
    axes[0, 1].set(title="Accuracy", ylabel="top-1 accuracy (%)")
    figures.explain(axes[0, 1])
    for own in axes.flat:
        own.set_xlabel("iteration" if against == "iterations" else "seconds of training")
        own.tick_params(labelbottom=True)
    return figure


def rates_table(rows: Sequence[Row], count: int) -> str:
    """Loss, training accuracy and rates of every layer at ``count`` rows, evenly spread, the last among them."""
    rows = [row for row in rows if row["phase"] == "train"]
    chosen = sorted({round((i + 1) * len(rows) / count) - 1 for i in range(count)} - {-1})
    return table(["iteration", "loss", "training accuracy", "forward", "backward, before the saturation mask"],
                 [[str(row["iteration"]), f"{row['loss']:.3f}", f"{row['top1']:.1f}%",
                   *(" ".join(map(_two_digits, row.get(kind) or [])) or "–" for kind in RATES)]
                  for row in map(rows.__getitem__, chosen)])


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
    if options.output.suffix.lower() != ".png":
        parser.error(f"--output must end in .png, the form of the picture, not be {options.output}")
    with mistakes.in_a_sentence(World()), mistakes.about(*options.folders, options.output.parent):
        runs = {str(folder): metrics.read(folder) for folder in options.folders}
        for name, rows in runs.items():
            if not any(row["phase"] == "train" for row in rows):
                raise UserError(f"{Path(name, metrics.NAME)} holds no rows of training: name the folder of a run that "
                                "has written some, without --log-every 0")
        figures.save(draw(runs, options.against), options.output)
        for name, rows in runs.items():
            say(f"**{name}**, rates in spikes per unit and step\n\n{rates_table(rows, options.rows)}\n")
        say(f"curves: {options.output}")


def _timed(rows: Sequence[Row]) -> list[Row]:
    """With the seconds of training up to each row as ``elapsed``; rows of training say how many an iteration took."""
    found, total, before = [], 0.0, 0
    for row in rows:
        if row["phase"] == "train":
            total, before = total + (row["iteration"] - before) * row["seconds"], row["iteration"]
        found.append({**row, "elapsed": total})
    return found


def _points(rows: Sequence[Row], place: str, kind: str) -> tuple[list[float], list[Any]]:
    """Where along the training there is a value of some kind, and the values."""
    found = [row for row in rows if row.get(kind) is not None]
    return [row[place] for row in found], [row[kind] for row in found]


def _two_digits(rate: float) -> str:
    """Such as .022, without a leading zero."""
    return f"{rate:#.2g}".lstrip("0") if rate else "0"
