"""From the recordings of CIFAR10-DVS to frames in a folder of their own, one file for each recording, on all cores."""
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np

from data.dvs_files import Key, Recording, dataset_folder, find_recordings, numbered, verify
from data.frames import TRANSFORMS, events_to_frames
from utils.errors import UserError
from utils.files import alone_in, expand, remove_leftovers, replacing
from utils.processes import cores, follow_parent
from utils.progress import follow


def cache_folder(root: str | Path, *, frames: int, transform: str, size: int = 48,
                 cache: str | Path | None = None) -> Path:
    """Where frames made with these settings are kept, in ``cache`` or in the folder of the dataset; a UserError where
    there is no such transform, or ``frames`` or ``size`` is not positive."""
    if transform not in TRANSFORMS:
        raise UserError(f"there is no frame transform {transform!r}: choose one of {', '.join(TRANSFORMS)}")
    if frames < 1 or size < 1:
        raise UserError(f"frames and size must be at least 1, not {frames} and {size}")
    return (expand(cache) if cache else dataset_folder(root)) / f"frames{frames}_{transform}_{size}x{size}"


def cached(folder: Path) -> dict[Key, Path]:
    """The files of frames in a folder, by class and number of their recordings."""
    names = os.listdir(folder) if folder.is_dir() else []
    return {key: folder / name for key, name in numbered(names, "npy").items()}


def convert(root: str | Path, *, frames: int, transform: str, size: int = 48, cache: str | Path | None = None,
            workers: int | None = None) -> None:
    """Make the frames of every recording below ``root`` that has none yet, in ``workers`` processes, one for each core.

    However it ends, a file of frames is whole or not there; the next call goes on with those that are not there.
    Arguments as for :class:`data.cifar10_dvs.CIFAR10DVS`.

    Raises:
        UserError: a recording or zip is damaged, or has too few events, or frames cannot be written; what is converted
            by then stays.
    """
    folder = cache_folder(root, frames=frames, transform=transform, size=size, cache=cache)
    recordings = find_recordings(root)
    if recordings.keys() <= cached(folder).keys():
        return
    remedy = "name another folder for them with --frames-path (in Python, with cache)"
    with alone_in(folder, contents="frames", remedy=remedy):  # others of the same training wait, and find all done
        remove_leftovers(folder)
        missing = {key: recordings[key] for key in sorted(recordings.keys() - cached(folder).keys())}
        if not missing:
            return
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
    """Convert in several processes; an item is yielded for each job that is done.

    They are new processes: a forked one may hang on what a thread of this one held.
    """
    pool = ProcessPoolExecutor(min(number, len(jobs)), multiprocessing.get_context("spawn"), initializer=_begin)
    try:
        with _without_script():
            results = [pool.submit(_convert_one, *job, *settings) for job in jobs]
        for result in as_completed(results):
            yield result.result()
    except OSError as error:
        raise UserError(str(error)) from error
    except BrokenProcessPool as error:
        raise UserError("a process that converts recordings ended suddenly: see to the memory of this machine, and run "
                        "again to go on with the rest") from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _without_script() -> Iterator[None]:
    """Hide the user's script from processes that are started: they would run it, and it need not be made for that."""
    script, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _begin() -> None:
    """Make this process end with the one that started it, which may be gone already."""
    follow_parent()
    if not multiprocessing.parent_process().is_alive():
        os._exit(1)


def _convert_one(recording: Recording, target: Path, frames: int, transform: str, size: int) -> None:
    if transform not in TRANSFORMS:
        raise UserError(f"the frame transform {transform!r} is unknown to the processes that convert recordings: "
                        f"define it in data/frames.py")
    events = recording.read()
    try:
        counts = events_to_frames(events, frames)
    except UserError as error:
        raise UserError(f"{recording}: {error}") from error
    with replacing(target) as file:
        np.save(file, TRANSFORMS[transform](counts, size))
