"""The recordings of CIFAR10-DVS on the disk: where they are, how to get them, and whether they are good.

Expected are ``<root>/cifar10-dvs/<class>.zip`` as published or, extracted, ``.aedat`` files anywhere in
``<root>/cifar10-dvs/<class>``. ``root`` may name the folder ``cifar10-dvs`` itself, spelt in any way, and there may be
one more level, such as another library's ``extract``, above the classes.
"""
import hashlib
import os
import re
import zlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen
from zipfile import BadZipFile, ZipFile

from data.aedat import Events, parse_aedat
from utils.errors import UserError
from utils.files import alone_in, plain, replacing, subfolders
from utils.progress import follow

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
PER_CLASS = 1000
ADDRESSES = ("https://api.figshare.com/v2/file/download/{}", "https://ndownloader.figshare.com/files/{}")
TIMEOUT = 10.0  # seconds of silence before a server is given up
SPELLINGS = ("cifar10dvs", "dvscifar10")  # of the dataset, without what is no letter or digit
PACKED = ("zip", "tar", "tgz", "targz", "7z", "rar", "mat", "h5", "hdf5", "npz")


class Recording(NamedTuple):
    """Where a recording is: in the file ``path``, or in the zip ``path`` under the name ``member``."""

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return str(self.path if self.member is None else self.path / self.member)

    def read(self) -> Events:
        """The events; a UserError where the file or zip is damaged."""
        if self.member is None:
            return parse_aedat(self.path.read_bytes(), str(self))
        try:
            with ZipFile(self.path) as archive:
                contents = archive.read(self.member)
        except (BadZipFile, EOFError, KeyError, zlib.error) as error:
            raise UserError(_damaged(self.path, f"at {self.member}: {error}")) from error
        return parse_aedat(contents, str(self))


# Where they are


def dataset_folder(root: str | Path) -> Path:
    """The folder of the dataset: ``root`` or the folder in it that is named so, or else the one to be made in it."""
    root = Path(root).expanduser()
    if (root / FOLDER).is_dir():
        return root / FOLDER
    return next((folder for folder in (root, *subfolders(root)) if plain(folder.absolute().name) in SPELLINGS),
                root / FOLDER)


def find_recordings(root: str | Path) -> dict[Key, Recording]:
    """All recordings below ``root``, by class and number. A zip, whose md5 is known, goes before an extracted folder;
    a UserError where a zip of the dataset is not one, or holds no recording of its class."""
    found: dict[Key, Recording] = {}
    for place in _places(root):
        for name in CLASSES:
            archive = place / f"{name}.zip"
            zipped = _in_zip(archive, name, strict=place == dataset_folder(root)) if archive.is_file() else {}
            found = (zipped or _in_files((place / name).rglob("*.aedat"))) | found
        found = _in_files(place.iterdir()) | found
    return found


def find_other_forms(root: str | Path) -> Path | None:
    """A file below ``root`` that seems to hold recordings of this dataset, but in a form that cannot be read."""
    for place in _places(root):
        for entry in sorted(os.listdir(place)):
            if plain(entry).startswith(SPELLINGS) and plain(entry).endswith(PACKED) and (place / entry).is_file():
                return place / entry
            for path in sorted((place / entry).rglob(f"cifar10_{entry}_*")) if entry in CLASSES else ():
                if re.fullmatch(rf"cifar10_{entry}_\d+\.(?!aedat$).*", path.name):
                    return path
    return None


def numbered(paths: Iterable[str], suffix: str) -> dict[Key, str]:
    """Those of ``paths`` that are named as recordings, by class and number."""
    pattern = re.compile(rf"cifar10_({'|'.join(CLASSES)})_(\d{{1,3}})\.{suffix}")
    matches = ((pattern.fullmatch(path.rpartition("/")[2]), path) for path in paths)
    return {(match[1], int(match[2])): path for match, path in matches if match}


def _places(root: str | Path) -> Iterator[Path]:
    """The folders that may hold zips or folders of classes: that of the dataset, ``root``, and all in these two."""
    for top in dict.fromkeys((dataset_folder(root), Path(root).expanduser())):
        if top.is_dir():
            yield top
            yield from subfolders(top)


def _in_files(paths: Iterable[Path]) -> dict[Key, Recording]:
    files = map(str, filter(Path.is_file, paths))
    return {key: Recording(Path(path)) for key, path in numbered(files, "aedat").items()}


def _in_zip(archive: Path, name: str, *, strict: bool) -> dict[Key, Recording]:
    """The recordings of a class in its zip; where there are none, an error if ``strict``."""
    found, cause = {}, f"it holds no file named cifar10_{name}_<number>.aedat"
    try:
        with ZipFile(archive) as contents:
            found = numbered(contents.namelist(), "aedat")
    except BadZipFile as error:
        cause = str(error)
    if strict and not any(key[0] == name for key in found):
        raise UserError(_damaged(archive, cause))
    return {key: Recording(archive, member) for key, member in found.items()}


# Download


def fetch(root: str | Path, classes: Collection[str] = CLASSES, *, download: bool = True) -> None:
    """Download the zips of ``classes`` that are not there yet, and check their md5. Nothing bad is kept.

    A UserError says what to fetch by hand, and where to, where a zip could not be had or ``download`` is off; or that
    there are recordings, but in a form that cannot be read.
    """
    folder = dataset_folder(root)
    if other := find_other_forms(root):
        raise UserError(f"{other} is of this dataset, but not as published: put the zips of the classes, or .aedat "
                        f"files in a folder for each class, into {folder}, or move it away, to download them")
    if not download:
        raise UserError(_describe_missing(folder, classes, "are missing"))
    reachable, reasons = list(ADDRESSES), []
    with alone_in(folder, contents="recordings", remedy="choose another --path"):
        for archive in (folder / f"{name}.zip" for name in classes):
            for address in tuple(reachable):
                if archive.exists():
                    break
                url = address.format(FILES[archive.stem][0])
                try:
                    _fetch(url, archive)
                except (OSError, HTTPException, ValueError) as error:
                    reasons.append(f"{url}: {error}")
                    if isinstance(error, (URLError, TimeoutError)) and not isinstance(error, HTTPError):
                        reachable.remove(address)  # no server answers, nor will it for the next file
    if failed := [name for name in classes if not (folder / f"{name}.zip").exists()]:
        raise UserError("\n  ".join((_describe_missing(folder, failed, "could not be downloaded") + "\nReasons:",
                                     *reasons)))


def _fetch(url: str, archive: Path) -> None:
    request = Request(url, headers={"User-Agent": "spide-fsnn"})
    with urlopen(request, timeout=TIMEOUT) as response, replacing(archive) as file:
        pieces = iter(partial(response.read, 1 << 20), b"")
        for piece in follow(pieces, label=f"Downloading {archive.name}", total=response.length, unit="B", size=len):
            file.write(piece)
        size = file.tell()
        if _md5(file) != FILES[archive.stem][1]:
            file.seek(0)
            start = file.read(64).lstrip()
            kind = "an HTML page" if start.startswith(b"<") else f"{size} bytes of another md5" if start else "empty"
            raise ValueError(f"the answer is {kind}")
    note, state = _note(archive, archive.parent)
    note.write_text(state)


def _describe_missing(folder: Path, classes: Collection[str], fate: str) -> str:
    """What to fetch by hand."""
    lines = (f"  {name}.zip  md5 {FILES[name][1]}  {_addresses(name)}" for name in classes)
    return "\n".join((f"{len(classes)} files of CIFAR10-DVS {fate}: fetch them by hand and put them, under the names "
                      f"given here, into {folder}", *lines))


def _addresses(name: str) -> str:
    return "  or  ".join(address.format(FILES[name][0]) for address in ADDRESSES)


# Whether they are good


def verify(archive: Path, notes: Path) -> None:
    """Compare a zip with its published md5, a UserError if that is another, but only once: a note in ``notes`` tells
    which state of it was found good."""
    note, state = _note(archive, notes)
    if note.exists() and note.read_text() == state:
        return
    with open(archive, "rb") as file:
        md5 = _md5(file)
    if md5 != FILES[archive.stem][1]:
        raise UserError(_damaged(archive, f"its md5 is {md5}"))
    with suppress(OSError):  # without the note, the next conversion compares again
        note.write_text(state)


def _md5(file: BinaryIO) -> str:
    file.seek(0)
    return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()


def _note(archive: Path, notes: Path) -> tuple[Path, str]:
    """The note on a zip, and what it says if the zip is good as it is now."""
    status = archive.stat()
    return notes / f".{archive.name}.verified", f"{FILES[archive.stem][1]} {status.st_size} {status.st_mtime_ns}"


def _damaged(archive: Path, cause: str) -> str:
    return (f"{archive} is damaged or not the published file ({cause}): delete it, to download it again, or replace it "
            f"with {_addresses(archive.stem)}, md5 {FILES[archive.stem][1]}")
