"""The table of results, from what finished runs left in their folders; and the keeping of that.

    python -m benchmarks.results docs/results/*/                prints the table of docs/results/README.md
    python -m benchmarks.results FOLDER --keep docs/results     copies there what the table is made of

Runs that differ by their seed alone share a row: mean and standard deviation over them.
"""
import argparse
import importlib
import json
import shutil
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils import metrics, mistakes
from utils.distributed import World
from utils.errors import UserError
from utils.logs import COLUMNS, LOG, PLOT, read_log
from utils.pages import number, table
from utils.progress import say

# Arguments that say where files lay, and others that change no number.
PLACES = {"path", "frames_path", "checkpoint", "resume", "export"}
HOW = {"workers", "save_every", "log_every", "manualSeed", "gpu_id", "report", "report_samples", "override"}
ROWS = 300  # of training that are kept of a run


def kept_at(run: Path, target: Path) -> Path:
    """The folder within ``target`` for what is kept of a run; a UserError, if it is there already."""
    folder = target / run.resolve().name
    if folder.exists():
        raise UserError(f"{folder} exists, and what is kept there is not overwritten: rename the run, or remove that")
    return folder


def keep(run: Path, target: Path) -> None:
    """Copy log, curves, metrics (thinned, to five digits) and arguments without places into a new folder of its name.

    A row of training that is kept has the mean seconds of those before it that are not, so times add up.
    """
    folder, rows, how = kept_at(run, target), metrics.read(run), json.loads((run / "args.json").read_text())
    training = [row for row in rows if row["phase"] == "train"]
    every = -(-len(training) // ROWS)
    groups = [training[first:first + every] for first in range(0, len(training), every)]
    kept = [{**own[-1], "seconds": statistics.mean(row["seconds"] for row in own)} for own in groups]
    kept = sorted(kept + [row for row in rows if row["phase"] == "test"],
                  key=lambda row: (row["iteration"], row["phase"] == "test"))
    folder.mkdir(parents=True)
    for file in filter(Path.exists, (run / LOG, run / PLOT)):
        shutil.copyfile(file, folder / file.name)
    short = (json.loads(json.dumps(row), parse_float=lambda text: float(f"{float(text):.5g}")) for row in kept)
    (folder / metrics.NAME).write_text("".join(json.dumps(row) + "\n" for row in short))
    how["command"] = command(how)
    how["arguments"] = _without_places(how["arguments"])
    (folder / "args.json").write_text(json.dumps(how, indent=2) + "\n")


def command(how: Mapping[str, Any]) -> list[str]:
    """The shortest command line that makes such a run: what differs from its script's defaults and changes numbers."""
    script, own = Path(how["command"][0]), how["arguments"]
    experiment = importlib.import_module(script.stem).EXPERIMENT
    usual = vars(experiment.arguments(["--dataset", own["dataset"]])) | {"dataset": experiment.defaults["dataset"]}
    words = [script.name]
    for name, value in _without_places(own).items():
        if name not in HOW and value != usual.get(name):
            values = value if isinstance(value, list) else [] if value is True else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return words


def _without_places(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that say what was trained; where a readout started anew, the name of the file of its network too."""
    kept = {name: value for name, value in arguments.items() if name not in PLACES}
    return {**kept, "resume": Path(arguments["resume"]).name} if arguments.get("new_readout") else kept


def results(folders: Sequence[Path]) -> str:
    """The table, a row for each experiment."""
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for folder in folders:
        try:
            name, run = _run(folder)
        except UserError:
            raise
        except (OSError, ImportError, ValueError, LookupError, TypeError, AttributeError, StopIteration) as error:
            raise UserError(f"{folder} holds no result ({type(error).__name__}: {error}): name the folder of a run of "
                            "a script that can be imported, with args.json, log.txt, and rows of training and of an "
                            f"evaluation in {metrics.NAME}") from error
        if twin := next((other["folder"] for other in runs[name] if other["seed"] == run["seed"]), None):
            raise UserError(f"{folder} and {twin} are runs of the same command with the same seed, so one would count "
                            "twice: name one of them")
        runs[name].append(run)
    return table(["command", "seeds", "epochs", "last test accuracy (%)", "best",
                  "seconds an epoch: an iteration's median times its iterations", "on"],
                 [[f"`{name}`", _each(own, "seed"), _each(own, "epochs"), _spread(own, "last"), _spread(own, "best"),
                   _spread(own, "time"), _each(own, "how")] for name, own in sorted(runs.items())])


def _run(folder: Path) -> tuple[str, dict[str, Any]]:
    """The command of a run, and what the table says of it; almost any error, where the folder is not a run's."""
    how, log, rows = json.loads((folder / "args.json").read_text()), read_log(folder), metrics.read(folder)
    accuracy = [row[COLUMNS.index("Valid Acc.")] for row in log]
    seconds = [row["seconds"] for row in rows if "seconds" in row]
    epoch = how.get("iterations_per_epoch") or next(  # which older folders do not say: as many as the first had
        row["iteration"] for row in rows if row["phase"] == "test")
    return " ".join(command(how)), {
        "folder": folder, "seed": how["arguments"]["manualSeed"],
        "epochs": f"{number(rows[-1]['iteration'] / epoch)} of {how['arguments']['epochs']}",
        "last": accuracy[-1], "best": max(accuracy), "time": statistics.median(seconds) * epoch,
        "how": "; then ".join(f"{place['device']}, PyTorch {place['versions']['torch']}"
                              + (f", commit {place['git']['commit'][:7]}{', with changes' * place['git']['dirty']}"
                                 if place["git"] else "")
                              for place in (*how.get("earlier", []), how))}


def _each(runs: Sequence[dict[str, Any]], kind: str) -> str:
    """All that there are."""
    return ", ".join(sorted({str(run[kind]) for run in runs}))


def _spread(runs: Sequence[dict[str, Any]], kind: str) -> str:
    """The mean, and the standard deviation of several."""
    values = [run[kind] for run in runs]
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of a run")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="copy there what the table is made of")
    options = parser.parse_args()
    with mistakes.in_a_sentence(World()), mistakes.about(*filter(None, [options.keep])):
        page = results(options.folders)
        kept = options.folders if options.keep else []
        if len({kept_at(own, options.keep) for own in kept}) < len(kept):
            raise UserError(f"two of these would be kept under one name in {options.keep}: rename one")
        for own in kept:
            keep(own, options.keep)
        say(page)
