"""Files that are always whole, and folders that one process uses at a time.

Files are written beside their target, flushed to the disk and renamed over it: whatever happens, a name holds either
the old contents or the new.
"""
import errno
import fcntl
import json
import os
import random
import re
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, Self

from utils.errors import UserError
from utils.processes import Process
from utils.progress import say

UNKNOWN = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)  # answers to what a file system cannot do


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


def expand(path: str | Path) -> Path:
    """The path, with ``~`` replaced by the home folder; whatever takes a path from a user calls this once."""
    return Path(os.path.expanduser(path))


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder that can be looked into, in order of their names; none where it is not there."""
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        return sorted(path for path in folder.iterdir() if path.is_dir() and os.access(path, os.R_OK | os.X_OK))
    return []


def plain(name: str) -> str:
    """A name without case and punctuation: people spell folders of data sets in many ways."""
    return re.sub("[^a-z0-9]", "", name.lower())


def make_writable(folder: Path) -> None:
    """Make a folder, unless it is there, and try whether it can be written.

    Raises:
        OSError: it cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder):
        pass


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed writer left beside its targets; nobody else may be writing to ``folder``."""
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


class FolderLock:
    """Exclusive use of a folder, among all threads, processes and hosts that ask for it in this way.

    ``with FolderLock(folder): ...`` holds it; asking again meanwhile waits for oneself. A file lock on ``.lock`` guards
    it, which ends with its process. Where the file system has none, each who wants the folder puts a file of his own
    there that names him, and has the folder if he finds no other of somebody alive, neither before nor after. On the
    same machine the process shows whether he is alive. From another machine his touches of the file do, so that one
    who cannot touch it for a minute loses the folder. A lock that is given back leaves no file.

    Args:
        folder: exists; wait: until it is free, where one would else refuse.

    Raises:
        UserError: without ``wait``, the folder is in use; the sentence names folder, process and host.
        OSError: no file can be written to the folder.
    """

    POLL, BEAT, SILENCE = 0.1, 5.0, 60.0  # seconds between attempts, between touches, and until none means the end

    def __init__(self, folder: str | Path, *, wait: bool = True) -> None:
        self.folder, self.wait = Path(folder), wait
        self._held: Path | None = None  # the file by which we have the folder
        self._descriptor: int | None = None  # of that file, if it is locked
        self._released = threading.Event()
        self._owner = "another process"
        self._touches: dict[Path, tuple[int, float]] = {}  # of files from other machines: time, and when that was new

    def __enter__(self) -> Self:
        os.register_at_fork(after_in_child=self._forget)
        start, told, chance = time.monotonic(), False, random.SystemRandom()  # the run's own generator stays as it is
        try:
            while not (taken := self._take()):
                if taken is False and not self.wait:
                    raise UserError(f"{self.folder} is in use by {self._owner}: wait until that ends, end it, or "
                                    f"choose another folder")
                if not told and time.monotonic() - start > 1:
                    told = True
                    say(f"waiting for {self._owner}, which uses {self.folder}")
                time.sleep(self.POLL * chance.uniform(0.5, 1.5))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        if self._held is not None:
            self._held.unlink(missing_ok=True)
        self._forget()

    def _take(self) -> bool | None:
        """Whether this one holds the folder now; None where one cannot say yet."""
        path = self.folder / ".lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False if self._read(path) else None
        except OSError as error:
            os.close(descriptor)
            if error.errno not in (*UNKNOWN, errno.ENOLCK):
                raise
            path.unlink(missing_ok=True)
            return self._take_without_locks()
        if not (path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())):
            os.close(descriptor)  # its owner gave it back, and took the file away, while we opened it
            return None
        self._held, self._descriptor = path, descriptor
        with suppress(OSError):  # the name of the owner is for people; a full disk must not keep him out
            os.ftruncate(descriptor, 0)
            os.write(descriptor, _signature())
            os.fsync(descriptor)
        return True

    def _take_without_locks(self) -> bool | None:
        """The same where there are no file locks."""
        others = self._others()
        answers = [self._in_use(path) for path in others]
        if True in answers or None in answers:
            return False if True in answers else None
        self._held = self.folder / f".lock.{uuid.uuid4().hex}"
        self._held.write_bytes(_signature())
        if set(self._others()) - {*others, self._held}:  # another came meanwhile: both go, and come back by chance
            self._held.unlink()
            self._held = None
            return None
        for path in others:
            path.unlink(missing_ok=True)
        self._released = threading.Event()
        threading.Thread(target=self._keep_touching, args=(self._held, self._released), daemon=True).start()
        return True

    def _others(self) -> list[Path]:
        return [self.folder / name for name in os.listdir(self.folder) if name.startswith(".lock.")]

    def _in_use(self, path: Path) -> bool | None:
        """Whether the owner of a file is alive; None where one cannot say yet."""
        found = self._read(path)
        if found is None:
            return False
        owner, touched = found
        alive = owner.alive() if owner else None
        if alive is not None:
            return alive
        before, since = self._touches.setdefault(path, (touched, time.monotonic()))
        if before != touched:
            self._touches[path] = touched, time.monotonic()
            return True
        return False if time.monotonic() - since > self.SILENCE else None

    def _read(self, path: Path) -> tuple[Process | None, int] | None:
        """The owner that a file names, if it says so yet, and when it was touched; None if there is no such file."""
        try:
            with open(path, "rb") as file:  # opened anew each time, which makes a network file system ask its server
                contents, touched = file.read(), os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return None
        try:
            owner = Process(*json.loads(contents))
        except (ValueError, TypeError):  # its writer has not finished, or never will
            return None, touched
        self._owner = f"process {owner.pid} on {owner.host}"
        return owner, touched

    def _keep_touching(self, path: Path, released: threading.Event) -> None:
        while not released.wait(self.BEAT):
            try:
                os.utime(path)
            except FileNotFoundError:
                if not released.is_set():
                    say(f"WARNING: {self.folder} was taken over by another process, which could not see that this one "
                        f"is alive: stop one of them")
                return
            except OSError:
                continue  # a file system that does not answer may do so later

    def _forget(self) -> None:
        """Close the file; so must a forked child, which would hold the lock beyond its parent's end."""
        descriptor, self._held, self._descriptor = self._descriptor, None, None
        if descriptor is not None:
            os.close(descriptor)


def _signature() -> bytes:
    return json.dumps(Process.this()).encode()
