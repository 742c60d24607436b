"""The folder of a run: what becomes there of the files of another run, or of a later state."""
import itertools
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from utils import checkpoint, metrics, report
from utils.checkpoint import BEST, LAST, Stored
from utils.errors import UserError
from utils.files import remove_leftovers, write_atomically
from utils.logs import LOG, PLOT, read_log, write_log
from utils.progress import say
from utils.run import Run, RunState

RUN_FILES = (LAST, BEST, LOG, PLOT, metrics.NAME, "args.json", "script.py", report.FOLDER)


def arrange(run: Run, found: Stored | None) -> None:
    """Leave in the folder, which is held, only what belongs to a run that begins, or goes on from ``found``.

    Files of another run are set aside, and so are files of this one that are later than what it goes on from; if that
    is another file by now, a UserError says so.
    """
    folder, state = run.folder, run.state
    if found and found.changed():
        raise UserError(f"{found.path} was replaced while this run was starting, by another that has ended now: "
                        "start again")
    remove_leftovers(folder)
    if outdated := run.outdated:
        say(f"note: the best network so far is of {state.best_of} test samples: the next evaluation counts as the best")
        state.best_acc, state.best_of = RunState.best_acc, RunState.best_of
    if found is None:
        _set_aside(folder, "of an earlier run", shutil.move)
    elif found.path.parent.resolve() != folder.resolve():
        _set_aside(folder, "of another run", _copy)
        _restore(run, found.path.parent)
    elif _is_later(folder, found, state):
        _restore(run, _set_aside(folder, f"later than iteration {state.iteration}", _copy))
    else:
        if outdated:
            _set_aside(folder, "with that network", _copy)
        elif state.best_of and not (run.over or (folder / BEST).exists()):
            _begin_without_best(run, folder)
        if len(read_log(folder)) < len(state.history):  # killed before the log was written
            write_log(folder, state.history)
        _cut_metrics(state, folder, folder)


def _is_later(folder: Path, found: Stored, state: RunState) -> bool:
    """Whether files of a run are later than the state that it goes on from, which came from the same folder."""
    last = found
    if found.path.name != LAST and (folder / LAST).exists():
        try:
            last = checkpoint.load(folder / LAST)
        except UserError:  # it may be anything
            return True
    return (last.contents.get("iteration", 0) > state.iteration
            or len(read_log(folder)) > len(state.history) + (state.batch > 0))


def _set_aside(folder: Path, kind: str, take: Callable[[Path, Path], object]) -> Path:
    """Move, or copy, the files of a run to ``previous-1``, ``previous-2``, ...; return where, if there are any."""
    files = [folder / name for name in RUN_FILES if (folder / name).exists()]
    target = next(path for n in itertools.count(1) if not (path := folder / f"previous-{n}").exists())
    if files:
        target.mkdir()
        for file in files:
            (take if file.is_file() else shutil.move)(file, target / file.name)
        say(f"files in {folder} {kind} are kept in {target}")
    return target


def _copy(file: Path, target: Path) -> None:
    """Copy a file, never a part of it."""
    write_atomically(target, file.read_bytes())
    shutil.copystat(file, target)


def _restore(run: Run, source: Path) -> None:
    """Write the files that the run had, as it stood: at no moment is there no checkpoint to go on from."""
    folder, state = run.folder, run.state
    best = _best_in(source)
    if best.get("best_acc") == state.best_acc and best.get("iteration", 0) <= state.iteration:
        write_atomically(folder / BEST, (source / BEST).read_bytes())
    else:
        (folder / BEST).unlink(missing_ok=True)
        _begin_without_best(run, source)
    _cut_metrics(state, source, folder)
    for name in (LOG, PLOT):
        (folder / name).unlink(missing_ok=True)
    run.write(rows=state.history or None)  # by this process alone: the others have no sums yet


def _cut_metrics(state: RunState, source: Path, folder: Path) -> None:
    """Write the rows of metrics that a run had when it stood at a state."""
    metrics.cut(source, folder, finished=state.epoch, running=state.batch > 0, iteration=state.iteration,
                evaluated=state.evaluated)


def _best_in(folder: Path) -> Mapping[str, Any]:
    """What the best network's file in a folder holds; nothing, if there is none that can be read."""
    try:
        return checkpoint.load(folder / BEST).contents if (folder / BEST).exists() else {}
    except UserError as error:
        say(f"warning: {error}")
        return {}


def _begin_without_best(run: Run, source: Path) -> None:
    """Let the next evaluation count as the best, as the network of the best one so far is lost."""
    run.state.best_acc = RunState.best_acc
    say(f"note: the best network up to this iteration is not in {source}: the next evaluation counts as the best")
