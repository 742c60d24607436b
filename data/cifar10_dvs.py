"""CIFAR10-DVS: 10,000 CIFAR-10 images moved in front of an event camera (Li et al., Frontiers in Neuroscience, 2017).

The recordings of a class are read from ``<root>/cifar10-dvs/<class>.zip`` or, extracted, from the ``.aedat`` files in
``<root>/cifar10-dvs/<class>``. The frames made of them are kept in a folder beside, one file for each recording; with
all frames there, the recordings may be deleted.
"""
import hashlib
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from data.aedat import Events, parse_aedat, read_aedat
from data.frames import TRANSFORMS, events_to_frames
from utils.processes import cores

T = TypeVar("T")
Key = tuple[str, int]  # class and number of a recording

FOLDER = "cifar10-dvs"
FILES = {  # class: (file id, md5) of its zip in figshare article 4724671
    "airplane": (7712788, "0afd5c4bf9ae06af762a77b180354fdd"),
    "automobile": (7712791, "8438dfeba3bc970c94962d995b1b9bdd"),
    "bird": (7712794, "a9c207c91c55b9dc2002dc21c684d785"),
    "cat": (7712812, "52c63c677c2b15fa5146a8daf4d56687"),
    "deer": (7712815, "b6bf21f6c04d21ba4e23fc3e36c8a4a3"),
    "dog": (7712818, "f379ebdf6703d16e0a690782e62639c3"),
    "frog": (7712842, "cad6ed91214b1c7388a5f6ee56d08803"),
    "horse": (7712851, "e7cbbf77bec584ffbf913f00e682782a"),
    "ship": (7712836, "41c7bd7d6b251be82557c6cce9a7d5c9"),
    "truck": (7712839, "89f3922fd147d9aeff89e76a2b0b70a7"),
}
CLASSES = tuple(FILES)
PER_CLASS, TRAIN_PER_CLASS = 1000, 900
ADDRESSES = ("https://api.figshare.com/v2/file/download/{}", "https://ndownloader.figshare.com/files/{}")
TIMEOUT = 10.0  # seconds of silence before a server is given up
REPORT_INTERVAL = 30.0  # seconds between lines of progress where there is no terminal


class CIFAR10DVS(Dataset):
    """Recordings as frames; numbers 0-899 of each class train, 900-999 test, however many of them are there.

    Whatever is missing is downloaded and converted first, see :func:`fetch` and :func:`convert`.

    Args:
        root: folder that holds, or is to hold, the folder ``cifar10-dvs``.
        train: the training or the test part.
        frames: of a recording; transform: name in :data:`data.frames.TRANSFORMS`; size: pixels of a side.
        download: fetch what is missing.

    Attributes:
        classes: names, indexed by label; targets: label of each recording.

    Raises:
        ValueError: recordings are missing and not downloaded, or damaged, or none are in this part.
    """

    classes = list(CLASSES)

    def __init__(self, root: str | Path, *, train: bool, frames: int = 30, transform: str = "reference",
                 download: bool = True, size: int = 48) -> None:
        cache = cache_folder(root, frames=frames, transform=transform, size=size)
        found, cached = (Counter(name for name, _ in keys) for keys in (find_recordings(root), _cached(cache)))
        absent = [name for name in CLASSES if not found[name] and cached[name] < PER_CLASS]
        if absent and not download:
            raise ValueError(_missing(Path(root) / FOLDER, absent, "are missing"))
        if absent:
            fetch(root, absent)
        convert(root, frames=frames, transform=transform, size=size)
        cached = _cached(cache)
        if len(cached) < PER_CLASS * len(CLASSES):
            warnings.warn(f"{cache} holds {len(cached)} of {PER_CLASS * len(CLASSES)} recordings", stacklevel=2)
        keys = sorted(key for key in cached if (key[1] < TRAIN_PER_CLASS) == train)
        if not keys:
            numbers = f"0-{TRAIN_PER_CLASS - 1}" if train else f"{TRAIN_PER_CLASS}-{PER_CLASS - 1}"
            raise ValueError(f"no {'training' if train else 'test'} recordings, numbers {numbers} of a class, are in "
                             f"{cache.parent}: put some there")
        self.paths = [cached[key] for key in keys]
        self.targets = [CLASSES.index(name) for name, _ in keys]
        self.shape = (frames, 2, size, size)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Frames, float32 (frames, 2, size, size) in [0, 1], and label of one recording.

        Raises:
            ValueError: the file of the frames is damaged.
        """
        path = self.paths[index]
        try:
            frames = np.load(path)
        except (OSError, EOFError, ValueError) as error:
            raise ValueError(f"{path} cannot be read ({error}): delete it and run again, to convert it anew") from error
        if frames.shape != self.shape:
            raise ValueError(f"{path} is damaged (it holds {frames.shape}, not {self.shape}): "
                             f"delete it and run again, to convert it anew")
        return torch.from_numpy(frames).float() / (255 if frames.dtype == np.uint8 else 1), self.targets[index]

    def __len__(self) -> int:
        return len(self.paths)


# Recordings


class Recording(NamedTuple):
    """Where a recording is: in the file ``path``, or in the zip ``path`` under the name ``member``."""

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return str(self.path if self.member is None else self.path / self.member)

    def read(self) -> Events:
        """The events.

        Raises:
            ValueError: the file or zip is damaged.
        """
        if self.member is None:
            return read_aedat(self.path)
        try:
            with ZipFile(self.path) as archive:
                contents = archive.read(self.member)
        except (BadZipFile, EOFError, KeyError, zlib.error) as error:
            raise ValueError(_damaged(self.path, f"at {self.member}: {error}")) from error
        return parse_aedat(contents, str(self))


def find_recordings(root: str | Path) -> dict[Key, Recording]:
    """All recordings below ``root``, by class and number. A zip, whose md5 is known, goes before an extracted folder.

    Raises:
        ValueError: a zip is not one, or holds no recording of its class.
    """
    found = {}
    for name in CLASSES:
        path = Path(root) / FOLDER / name
        archive = path.with_suffix(".zip")
        if archive.exists():
            try:
                with ZipFile(archive) as contents:
                    numbered = _numbered(contents.namelist(), "aedat")
            except BadZipFile as error:
                raise ValueError(_damaged(archive, str(error))) from error
            if not any(key[0] == name for key in numbered):
                raise ValueError(_damaged(archive, f"it holds no file named cifar10_{name}_<number>.aedat"))
            found |= {key: Recording(archive, member) for key, member in numbered.items()}
        elif path.is_dir():
            found |= {key: Recording(path / file) for key, file in _numbered(os.listdir(path), "aedat").items()}
    return found


def _numbered(paths: Iterable[str], suffix: str) -> dict[Key, str]:
    """Those of ``paths`` that are named as recordings, by class and number."""
    pattern = re.compile(rf"cifar10_({'|'.join(CLASSES)})_(\d{{1,3}})\.{suffix}")
    matches = ((pattern.fullmatch(path.rpartition("/")[2]), path) for path in paths)
    return {(match[1], int(match[2])): path for match, path in matches if match}


# Download


def fetch(root: str | Path, classes: Collection[str] = CLASSES) -> None:
    """Download the zips of ``classes`` that are not below ``root`` yet, and check their md5. Nothing bad is kept.

    Raises:
        ValueError: a zip could not be had from any address; the message tells what to fetch by hand, and where to.
    """
    folder = Path(root) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    reachable, reasons, failed = list(ADDRESSES), [], []
    with FileLock(folder / ".lock"):
        for name in classes:
            archive = folder / f"{name}.zip"
            for address in () if archive.exists() else tuple(reachable):
                url = address.format(FILES[name][0])
                try:
                    _fetch(url, archive)
                    break
                except (OSError, HTTPException, ValueError) as error:
                    reasons.append(f"{url}: {error}")
                    if isinstance(error, (URLError, TimeoutError)) and not isinstance(error, HTTPError):
                        reachable.remove(address)  # no server answers, nor will it for the next file
            if not archive.exists():
                failed.append(name)
    if failed:
        raise ValueError(_missing(folder, failed, "could not be downloaded") + "\nReasons:\n  " + "\n  ".join(reasons))


def _fetch(url: str, archive: Path) -> None:
    """Download one zip, by way of a file beside it that takes its name once it is whole."""
    part, digest = archive.with_name(archive.name + ".part"), hashlib.md5(usedforsecurity=False)
    request = Request(url, headers={"User-Agent": "spide-fsnn"})
    try:
        with urlopen(request, timeout=TIMEOUT) as response, open(part, "wb") as file, \
                tqdm(desc=f"Downloading {archive.name}", total=response.length, unit="B", unit_scale=True,
                     disable=None) as bar:
            if bar.disable:
                print(f"Downloading {archive.name} from {url}", file=sys.stderr, flush=True)
            while chunk := response.read(1 << 20):
                file.write(chunk)
                digest.update(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != FILES[archive.stem][1]:
            raise ValueError(f"the answer is {_describe(part)}")
        os.replace(part, archive)
    finally:
        part.unlink(missing_ok=True)
    _verified(archive).write_text(_state(archive))


def _describe(part: Path) -> str:
    """What a server sent in place of the file."""
    with open(part, "rb") as file:
        start = file.read(64).lstrip()
    if not start:
        return "empty"
    return "an HTML page" if start.startswith(b"<") else f"{part.stat().st_size} bytes of another md5"


def _missing(folder: Path, classes: Collection[str], fate: str) -> str:
    """What to fetch by hand."""
    lines = (f"  {name}.zip  md5 {FILES[name][1]}  {'  or  '.join(a.format(FILES[name][0]) for a in ADDRESSES)}"
             for name in classes)
    return "\n".join((f"{len(classes)} files of CIFAR10-DVS {fate}: fetch them by hand and put them, under the names "
                      f"given here, into {folder}", *lines))


def _damaged(archive: Path, cause: str) -> str:
    file_id, md5 = FILES[archive.stem]
    return (f"{archive} is damaged or not the published file ({cause}): delete it, to download it again, or replace it "
            f"with {' or '.join(address.format(file_id) for address in ADDRESSES)}, md5 {md5}")


def _verify(archive: Path) -> None:
    """Compare a zip with its published md5, but only once: a note beside it tells which state of it was found good."""
    note = _verified(archive)
    if note.exists() and note.read_text() == _state(archive):
        return
    with open(archive, "rb") as file:
        md5 = hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
    if md5 != FILES[archive.stem][1]:
        raise ValueError(_damaged(archive, f"its md5 is {md5}"))
    note.write_text(_state(archive))


def _verified(archive: Path) -> Path:
    return archive.with_name(f".{archive.name}.verified")


def _state(archive: Path) -> str:
    status = archive.stat()
    return f"{FILES[archive.stem][1]} {status.st_size} {status.st_mtime_ns}"


# Conversion


def cache_folder(root: str | Path, *, frames: int, transform: str, size: int = 48) -> Path:
    """Where frames made with these settings are kept.

    Raises:
        ValueError: there is no such transform, or ``frames`` or ``size`` is not positive.
    """
    if transform not in TRANSFORMS:
        raise ValueError(f"there is no frame transform {transform!r}: choose one of {', '.join(TRANSFORMS)}")
    if frames < 1 or size < 1:
        raise ValueError(f"frames and size must be at least 1, not {frames} and {size}")
    return Path(root) / FOLDER / f"frames{frames}_{transform}_{size}x{size}"


def convert(root: str | Path, *, frames: int, transform: str, size: int = 48, workers: int | None = None) -> None:
    """Make the frames of every recording below ``root`` that has none yet, in parallel.

    However it ends, a file of frames is whole or not there; the next call goes on with those that are not there.

    Args:
        root, frames, transform, size: as for :class:`CIFAR10DVS`; workers: processes, by default one for each core.

    Raises:
        ValueError: a recording or zip is damaged, or has too few events; what is converted by then stays.
    """
    cache, recordings = cache_folder(root, frames=frames, transform=transform, size=size), find_recordings(root)
    if recordings.keys() <= _cached(cache).keys():
        return
    cache.mkdir(exist_ok=True)
    with FileLock(cache / ".lock"):  # other processes of the same training wait here, and find all done
        for part in cache.glob(".*.part"):
            part.unlink()
        missing = {key: recordings[key] for key in sorted(recordings.keys() - _cached(cache).keys())}
        archives = sorted({recording.path for recording in missing.values() if recording.member is not None})
        for archive in _progress(archives, "Checking zips"):
            _verify(archive)
        targets = [cache / f"cifar10_{name}_{number}.npy" for name, number in missing]
        work = partial(_convert_one, frames=frames, transform=transform, size=size)
        # Spawned, since forked copies of a process with threads, as PyTorch's is, may hang.
        pool = ProcessPoolExecutor(max(1, min(workers or cores(), len(missing))), multiprocessing.get_context("spawn"),
                                   initializer=_follow_parent)
        try:
            for _ in _progress(pool.map(work, missing.values(), targets), "Converting recordings", len(missing)):
                pass
        finally:
            pool.shutdown(cancel_futures=True)


def _convert_one(recording: Recording, target: Path, *, frames: int, transform: str, size: int) -> None:
    """Write the frames of a recording, by way of a file beside ``target`` that takes its name once it is whole."""
    events = recording.read()
    try:
        counts = events_to_frames(events, frames)
    except ValueError as error:
        raise ValueError(f"{recording}: {error}") from error
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            np.save(file, TRANSFORMS[transform](counts, size))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _follow_parent() -> None:
    """Make a worker leave Ctrl-C to its parent, which lets it finish its file, and end when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _cached(cache: Path) -> dict[Key, Path]:
    names = os.listdir(cache) if cache.is_dir() else []
    return {key: cache / name for key, name in _numbered(names, "npy").items()}


def _progress(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """The items, with a progress bar on a terminal and lines now and then elsewhere."""
    reported = time.monotonic()
    with tqdm(items, desc=description, total=total, disable=None) as bar:
        for done, item in enumerate(bar, 1):
            yield item
            if bar.disable and (time.monotonic() - reported > REPORT_INTERVAL or done == bar.total):
                reported = time.monotonic()
                print(f"{description}: {done} of {bar.total}", file=sys.stderr, flush=True)
