"""The folder of a run: who may write to it, and what becomes of the files of another run or of a later state."""
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils import checkpoint, metrics
from utils.checkpoint import BEST, LAST, Stored
from utils.errors import UserError
from utils.files import alone_in, remove_leftovers, write_atomically
from utils.logs import LOG, PLOT, read_log
from utils.progress import say
from utils.run import Run, RunState

RUN_FILES = (LAST, BEST, LOG, PLOT, metrics.NAME, "args.json", "script.py")


@contextmanager
def opened(run: Run, found: Stored | None) -> Iterator[None]:
    """Context that has the folder of a run for itself, in order for training to begin, or to go on from ``found``.

    Files of another run are set aside, and so are files of this one that are later than what it goes on from.

    Raises:
        UserError: the folder cannot be written, or another run writes to it.
    """
    folder = run.folder
    with alone_in(folder, contents="checkpoints", remedy="choose another with -c", wait=False):
        if found and found.changed():
            raise UserError(f"{found.path} was replaced while this run was starting, by another that has ended now: "
                            "start again")
        remove_leftovers(folder)
        _arrange(run, found)
        yield


def _arrange(run: Run, found: Stored | None) -> None:
    """Leave only what belongs to the run as it stands."""
    folder, state = run.folder, run.state
    if found is None:
        _set_aside(folder, "of an earlier run")
        return
    source = found.path.parent
    elsewhere = source.resolve() != folder.resolve()
    if elsewhere or _is_later(folder, found, state):
        kind = "of another run" if elsewhere else f"later than iteration {state.iteration}"
        kept = _set_aside(folder, kind, copy=True)
        _restore(run, source if elsewhere else kept)
        return
    metrics.cut(folder, folder, iteration=state.iteration, evaluated=state.evaluated)


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


def _set_aside(folder: Path, kind: str, *, copy: bool = False) -> Path:
    """Move, or copy, the files of a run to ``previous-1``, ``previous-2``, ...; return where, if there are any."""
    files = [folder / name for name in RUN_FILES if (folder / name).exists()]
    number = 1
    while (folder / f"previous-{number}").exists():
        number += 1
    target = folder / f"previous-{number}"
    if files:
        target.mkdir()
        for file in files:
            (shutil.copy2 if copy else shutil.move)(file, target / file.name)
        say(f"files in {folder} {kind} are kept in {target}")
    return target


def _restore(run: Run, source: Path) -> None:
    """Write the files that the run had, as it stood: at no moment is there no checkpoint to go on from."""
    folder, state = run.folder, run.state
    best = None
    if (source / BEST).exists():
        try:
            best = checkpoint.load(source / BEST)
        except UserError as error:
            say(f"warning: {error}")
    known = best and best.contents.get("best_acc") == state.best_accuracy
    if known and best.contents.get("iteration", 0) <= state.iteration:
        write_atomically(folder / BEST, best.path.read_bytes())
    else:
        (folder / BEST).unlink(missing_ok=True)
        state.best_accuracy = RunState.best_accuracy
        say(f"note: the best network up to this iteration is not in {source}: the next evaluation counts as the best")
    metrics.cut(source, folder, iteration=state.iteration, evaluated=state.evaluated)
    for name in (LOG, PLOT):
        (folder / name).unlink(missing_ok=True)
    run.save(rows=state.history or None)
