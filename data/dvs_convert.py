"""From the recordings of CIFAR10-DVS to frames in a folder of their own, one file for each recording, on all cores."""
import hashlib
import inspect
import json
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

from data.dvs_files import Key, Recording, dataset_folder, find_recordings, numbered, verify
from data.frames import TRANSFORMS, events_to_frames
from utils.errors import UserError
from utils.files import alone_in, expand, remove_leftovers, replacing
from utils.processes import cores, follow_parent
from utils.progress import follow

MARK = "made-by"  # in a folder of frames, the version of the code that made them


def cache_folder(root: str | Path, *, frames: int, transform: str, size: int = 48,
                 cache: str | Path | None = None) -> Path:
    """Where frames made with these settings are kept: in ``cache``, or else in the folder of the dataset; a UserError
    where there is no such transform, or ``frames`` or ``size`` is not positive."""
    if transform not in TRANSFORMS:
        raise UserError(f"there is no frame transform {transform!r}: choose one of {', '.join(TRANSFORMS)}")
    if frames < 1 or size < 1:
        raise UserError(f"frames and size must be at least 1, not {frames} and {size}")
    return (expand(cache) if cache else dataset_folder(root)) / f"frames{frames}_{transform}_{size}x{size}"


def cached(folder: Path) -> dict[Key, Path]:
    """The files of frames in a folder, by class and number of their recordings."""
    names = os.listdir(folder) if folder.is_dir() else []
    return {key: folder / name for key, name in numbered(names, "npy").items()}


def _mark(transform: str) -> str:
    """What tells one version of the code that makes frames from another."""
    code = map(inspect.getsource, (events_to_frames, TRANSFORMS[transform]))
    return hashlib.sha256("".join(code).encode()).hexdigest()


def convert(root: str | Path, *, frames: int, transform: str, size: int = 48, cache: str | Path | None = None,
            workers: int | None = None) -> None:
    """Make the frames of every recording below ``root`` that has none yet, in parallel.

    However it ends, a file of frames is whole or not there; the next call goes on with those that are not there. A
    UserError says that a recording or zip is damaged or has too few events, that frames cannot be written, or that
    those in the folder were made by another version of the transform.

    Args:
        root, frames, transform, size, cache: as for :class:`data.cifar10_dvs.CIFAR10DVS`.
        workers: processes, by default one for each core.
    """
    folder = cache_folder(root, frames=frames, transform=transform, size=size, cache=cache)
    recordings, mark = find_recordings(root), folder / MARK
    remedy = "name another folder for them with --frames-path (in Python, with cache)"
    if cached(folder) and mark.is_file() and mark.read_text() != _mark(transform):
        raise UserError(f"{folder} holds frames from before the transform {transform!r} was changed: delete it, or "
                        f"{remedy}")
    if recordings.keys() <= cached(folder).keys():
        return
    with alone_in(folder, contents="frames", remedy=remedy):  # others of the same training wait, and find all done
        remove_leftovers(folder)
        missing = {key: recordings[key] for key in sorted(recordings.keys() - cached(folder).keys())}
        if not missing:
            return
        mark.write_text(_mark(transform))
        archives = sorted({recording.path for recording in missing.values() if recording.member is not None})
        for archive in follow(archives, label="Checking zips", total=len(archives), unit="zip") if archives else ():
            verify(archive, folder.parent)
        jobs = [(recording, folder / f"cifar10_{name}_{number}.npy") for (name, number), recording in missing.items()]
        try:
            with closing(_on_all_cores(jobs, (frames, transform, size), workers or cores())) as done:
                for _ in follow(done, label="Converting recordings", total=len(jobs), unit="recording"):
                    pass
        finally:
            remove_leftovers(folder)


def _on_all_cores(jobs: list[tuple[Recording, Path]], settings: tuple[int, str, int], number: int) -> Iterator[None]:
    """Convert in several processes, each of which takes an equal share; an item is yielded for each job that is done.

    They are processes of this file, not copies of the one that asks: they neither run the user's script again, which
    need not be prepared for that, nor inherit its threads, with which a forked copy may hang.
    """
    shares = [jobs[first::number] for first in range(min(number, len(jobs)))]
    code = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    workers: list[subprocess.Popen] = []
    reading, writing = os.pipe()
    with open(reading) as answers, open(writing, "wb") as end:
        try:
            for share in shares:
                with TemporaryFile() as task:
                    pickle.dump((share, *settings), task)
                    task.seek(0)
                    workers.append(subprocess.Popen([sys.executable, "-P", "-m", "data.dvs_convert"], stdin=task,
                                                    stdout=end, env={**os.environ, "PYTHONPATH": code}))
            end.close()
            for line in answers:
                if answer := json.loads(line):
                    mistake, text = answer
                    raise UserError(text) if mistake else RuntimeError(text)
                yield
            for status in (worker.wait() for worker in workers):
                if status:
                    raise UserError(f"a process that converts recordings ended with status {status}: see to the memory "
                                    f"of this machine, and run again to go on with the rest")
        finally:
            for worker in workers:
                worker.terminate()
                worker.wait()


def _work() -> None:
    """Be one of several workers: take a share of recordings from the standard input, report to the output."""
    follow_parent()
    try:
        jobs, frames, transform, size = pickle.load(sys.stdin.buffer)
        if transform not in TRANSFORMS:
            raise UserError(f"the frame transform {transform!r} is unknown to the processes that convert recordings: "
                            f"define it in data/frames.py")
        for recording, target in jobs:
            _convert_one(recording, target, frames=frames, transform=transform, size=size)
            _answer(None)
    except (UserError, OSError) as error:
        _answer((True, str(error)))
    except Exception:  # a fault of the code, a transform's for one: who asked gets its traceback
        _answer((False, traceback.format_exc()))


def _answer(answer: tuple[bool, str] | None) -> None:
    """Tell who asked that a recording is done, or why none will be: whether by a user's mistake, and words."""
    os.write(1, json.dumps(answer).encode() + b"\n")


def _convert_one(recording: Recording, target: Path, *, frames: int, transform: str, size: int) -> None:
    events = recording.read()
    try:
        counts = events_to_frames(events, frames)
    except UserError as error:
        raise UserError(f"{recording}: {error}") from error
    with replacing(target) as file:
        np.save(file, TRANSFORMS[transform](counts, size))


if __name__ == "__main__":
    _work()
