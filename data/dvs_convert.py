"""From the recordings of CIFAR10-DVS to frames in a folder of their own, one file for each recording, on all cores."""
import hashlib
import inspect
import os
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed

from data.dvs_files import Key, Recording, dataset_folder, find_recordings, numbered, verify
from data.frames import TRANSFORMS, events_to_frames
from utils.errors import UserError
from utils.files import alone_in, remove_leftovers, replacing, write_atomically
from utils.processes import follow_parent
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
    return (Path(cache).expanduser() if cache else dataset_folder(root)) / f"frames{frames}_{transform}_{size}x{size}"


def cached(folder: Path) -> dict[Key, Path]:
    """The files of frames in a folder, by class and number of their recordings."""
    names = os.listdir(folder) if folder.is_dir() else []
    return {key: folder / name for key, name in numbered(names, "npy").items()}


def _mark(transform: str) -> bytes:
    """What tells one version of the code that makes frames from another."""
    code = map(inspect.getsource, (events_to_frames, TRANSFORMS[transform]))
    return hashlib.sha256("".join(code).encode()).hexdigest().encode()


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
    marked = mark.read_bytes() if mark.is_file() else b""
    if cached(folder) and marked not in (b"", _mark(transform)):
        raise UserError(f"{folder} holds frames from before the transform {transform!r} was changed: delete it, or "
                        f"{remedy}")
    if recordings.keys() <= cached(folder).keys():
        return
    with alone_in(folder, contents="frames", remedy=remedy):  # others of the same training wait, and find all done
        remove_leftovers(folder)
        missing = {key: recordings[key] for key in sorted(recordings.keys() - cached(folder).keys())}
        if not missing:
            return
        archives = sorted({recording.path for recording in missing.values() if recording.member is not None})
        for archive in follow(archives, label="Checking zips", total=len(archives), unit="zip") if archives else ():
            verify(archive, folder.parent)
        jobs = [(recording, folder / f"cifar10_{name}_{number}.npy") for (name, number), recording in missing.items()]
        # Loky's processes neither run the user's script again nor inherit its threads, with which a fork may hang.
        share = Parallel(workers or -1, "loky", return_as="generator_unordered", initializer=follow_parent,
                         idle_worker_timeout=10)
        convert_one = delayed(partial(_convert_one, frames=frames, transform=TRANSFORMS[transform], size=size))
        try:
            if marked != _mark(transform):
                write_atomically(mark, _mark(transform))
            with closing(share(convert_one(*job) for job in jobs)) as done:
                for _ in follow(done, label="Converting recordings", total=len(jobs), unit="recording"):
                    pass
        except BrokenExecutor as error:
            raise UserError("a process that converts recordings was killed: see to the memory of this machine, and run "
                            "again to go on with the rest") from error
        except OSError as error:
            raise UserError(str(error)) from error
        finally:
            remove_leftovers(folder)


def _convert_one(recording: Recording, target: Path, *, frames: int, transform: Callable[[np.ndarray, int], np.ndarray],
                 size: int) -> None:
    events = recording.read()
    try:
        counts = events_to_frames(events, frames)
    except UserError as error:
        raise UserError(f"{recording}: {error}") from error
    with replacing(target) as file:
        np.save(file, transform(counts, size))
