"""Files that are always whole, and folders that one process uses at a time. Below: the folder of a run.

Files are written beside their target, flushed to the disk and renamed over it: whatever happens, a name holds either
the old contents or the new.
"""
import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Self

from utils.errors import UserError
from utils.processes import Process
from utils.progress import say

UNKNOWN = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)  # answers to what a file system cannot do
LAST, BEST = "checkpoint.pth.tar", "model_best.pth.tar"
RUN_FILES = (LAST, BEST, "log.txt", "log.png", "args.json", "script.py")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write and read that takes the name ``path`` at the end of the context, and only if that is reached.

    Raises:
        OSError: it cannot be written; the old file, if any, is still there.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(beside, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except PermissionError:  # a folder that may be written, but not read
        return
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in UNKNOWN:
            raise
    finally:
        os.close(folder)


def write_atomically(path: Path, contents: bytes) -> None:
    """Replace ``path`` by ``contents``, never by a part of it.

    Raises:
        OSError: as :func:`replacing`.
    """
    with replacing(path) as file:
        file.write(contents)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed writer left beside its targets; nobody else may be writing to ``folder``."""
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


class FolderLock:
    """Exclusive use of a folder, among all threads, processes and hosts that ask for it in this way.

    ``with FolderLock(folder): ...`` holds it; asking again meanwhile waits for oneself. A file lock guards it, which
    ends with its process. Where the file system has none, numbered files do, each of which it creates only once: the
    newest names the owner. On the same machine his process shows whether he is alive. From another machine his touches
    of the file do, so that one who cannot touch it for a minute loses the folder. Of several who find him gone, one
    creates the next file.

    Args:
        folder: exists; wait: until it is free, where one would else refuse.

    Raises:
        UserError: without ``wait``, the folder is in use; the sentence names folder, process and host.
        OSError: no file can be written to the folder.
    """

    POLL, BEAT, SILENCE = 0.1, 5.0, 60.0  # seconds between attempts, between touches, and until none means the end

    def __init__(self, folder: str | Path, *, wait: bool = True) -> None:
        self.folder, self.wait = Path(folder), wait
        self._owner = "another process"
        self._touched: tuple[Path, int, float] | None = None  # a foreign owner's file, its time, and when that was new
        self._descriptor: int | None = None
        self._released = threading.Event()

    def __enter__(self) -> Self:
        os.register_at_fork(after_in_child=self._close)  # a forked child would hold the lock beyond our end
        start, told = time.monotonic(), False
        self._released.clear()
        try:
            while not (taken := self._take()):
                if taken is False and not self.wait:
                    raise UserError(f"{self.folder} is in use by {self._owner}: wait until that ends, end "
                                    f"it, or choose another folder")
                if not told and time.monotonic() - start > 1:
                    told = True
                    say(f"waiting for {self._owner}, which uses {self.folder}")
                time.sleep(self.POLL)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        if self._descriptor is not None:
            with suppress(OSError):  # what was done under the lock is done, whether or not its end can be written
                self._write(None)
            self._close()

    def _take(self) -> bool | None:
        """Whether this one holds the folder now; None where one cannot say yet."""
        descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (*UNKNOWN, errno.ENOLCK):
                return self._take_numbered()
            if not isinstance(error, BlockingIOError):
                raise
            self._read(self.folder / ".lock")
            return False
        self._descriptor = descriptor
        self._write(Process.this())
        return True

    def _take_numbered(self) -> bool | None:
        """The same without file locks."""
        numbers = self._numbers()
        if numbers and (in_use := self._in_use(self._numbered(max(numbers)))) is not False:
            return False if in_use else None
        own = max(numbers, default=0) + 1
        try:
            self._descriptor = os.open(self._numbered(own), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:  # somebody was faster
            return None
        self._write(Process.this())
        if max(self._numbers()) > own:  # somebody had that number, and gave it up, while we were looking
            self._close()
            self._numbered(own).unlink()
            return None
        for number in numbers:
            self._numbered(number).unlink(missing_ok=True)
        threading.Thread(target=self._keep_touching, args=(self._numbered(own),), daemon=True).start()
        return True

    def _in_use(self, path: Path) -> bool | None:
        """Whether the owner that a numbered file names is alive; None where one cannot say yet."""
        try:
            owner, free, touched = self._read(path)
        except FileNotFoundError:
            return None
        if free:
            return False
        alive = owner.alive() if owner else None
        if alive is None:
            before, now = self._touched, time.monotonic()
            if before is None or before[:2] != (path, touched):
                self._touched = path, touched, now
                alive = True if before is not None and before[0] == path else None
            elif now - before[2] > self.SILENCE:
                alive = False
        return alive

    def _keep_touching(self, path: Path) -> None:
        while not self._released.wait(self.BEAT):
            try:
                os.utime(path)
            except FileNotFoundError:
                say(f"WARNING: {self.folder} was taken over by another process, as this one could not be seen to be "
                    f"alive: stop one of them")
                return
            except OSError:
                continue  # a file system that does not answer may do so later

    def _numbers(self) -> list[int]:
        names = (name.removeprefix(".lock.") for name in os.listdir(self.folder) if name.startswith(".lock."))
        return [int(name) for name in names if name.isdecimal()]

    def _numbered(self, number: int) -> Path:
        return self.folder / f".lock.{number}"

    def _read(self, path: Path) -> tuple[Process | None, bool, int]:
        """Who a file names, if it is anybody; whether it says that the folder is free; and when it was touched."""
        with open(path, "rb") as file:  # opened anew each time, which makes a network file system ask its server
            contents, touched = file.read(), os.fstat(file.fileno()).st_mtime_ns
        try:
            record = json.loads(contents)
            owner = Process(*record) if record is not None else None
        except (ValueError, TypeError):  # its writer has not finished, or never will
            return None, False, touched
        if owner is not None:
            self._owner = f"process {owner.pid} on {owner.host}"
        return owner, record is None, touched

    def _write(self, owner: Process | None) -> None:
        record = json.dumps(owner).encode()
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, record, 0)
        os.fsync(self._descriptor)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def open_folder(folder: Path, *, fresh: bool) -> None:
    """Make sure that a run can write to ``folder``, and clear away what a killed writer left there.

    A fresh run first sets the files of an earlier one aside.

    Raises:
        ValueError: the folder cannot be made or written.
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
        raise ValueError(f"cannot write checkpoints to {folder} ({error.strerror}): choose another with -c") from error


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
