"""The folder of a run, and writing files into it so that they are always whole.

Files are written beside their target, flushed to the disk and renamed over it: whatever happens, a name holds either
the old contents or the new.
"""
import os
from pathlib import Path

from utils.errors import UserError

LAST, BEST = "checkpoint.pth.tar", "model_best.pth.tar"
RUN_FILES = (LAST, BEST, "log.txt", "log.png", "args.json", "script.py")


def write_atomically(path: Path, contents: bytes) -> None:
    """Replace ``path`` by ``contents``, never by a part of it.

    Raises:
        OSError: it cannot be written; the old file, if any, is still there.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(beside, "wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def open_folder(folder: Path, *, fresh: bool) -> None:
    """Make sure that a run can write to ``folder``, and clear away what a killed writer left there.

    A fresh run first sets the files of an earlier one aside.

    Raises:
        UserError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / ".writable", b"")
        (folder / ".writable").unlink()
        for leftover in folder.glob(".*.part"):
            leftover.unlink()
        if fresh:
            set_aside(folder)
    except OSError as error:
        raise UserError(f"cannot write checkpoints to {folder} ({error.strerror}): choose another with -c") from error


def set_aside(folder: Path) -> Path | None:
    """Move the files of an earlier run in ``folder`` to ``previous-1``, ``previous-2``, ...; return where, if any."""
    files = [folder / name for name in RUN_FILES if (folder / name).exists()]
    if not files:
        return None
    number = 1
    while (folder / f"previous-{number}").exists():
        number += 1
    target = folder / f"previous-{number}"
    target.mkdir()
    for file in files:
        file.rename(target / file.name)
    return target
