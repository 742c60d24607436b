"""Files that are always whole, and folders that one process uses at a time.

Files are written beside their target, flushed to the disk and renamed over it: whatever happens, a name holds either
the old contents or the new.
"""
import errno
import fcntl
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, Self

from filelock import FileLock, SoftFileLease, Timeout

from utils.errors import UserError
from utils.progress import say

UNKNOWN = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)  # answers to what a file system cannot do


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write and read that takes the name ``path`` at the end of the context, and only if that is reached.

    If an OSError says that it cannot be written, the old file, if any, is still there.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(beside, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        if error.filename in (None, str(beside)):  # a full disk names none
            error.filename = str(path)
        raise
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
    """Replace ``path`` by ``contents``, never by a part of it; errors as of :func:`replacing`."""
    with replacing(path) as file:
        file.write(contents)


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder that can be looked into, in order of their names; none where it is not there."""
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        return sorted(path for path in folder.iterdir() if path.is_dir() and os.access(path, os.R_OK | os.X_OK))
    return []


def plain(name: str) -> str:
    """A name without case and punctuation: people spell folders of data sets in many ways."""
    return re.sub("[^a-z0-9]", "", name.lower())


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed writer left beside its targets; nobody else may be writing to ``folder``."""
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


@contextmanager
def alone_in(folder: Path, *, contents: str, remedy: str, wait: bool = True) -> Iterator["FolderLock"]:
    """Make a folder, unless it is there, and hold its :class:`FolderLock`, which see, in the context; a UserError, if
    it cannot be made or written: ``contents`` and ``remedy`` are what one wants to write and what to do then."""
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(FolderLock(folder, wait=wait))
        except OSError as error:
            raise UserError(f"cannot write {contents} to {folder} ({error.strerror}): {remedy}") from error
        yield lock


class FolderLock:
    """Exclusive use of a folder, among all threads, processes and hosts that ask for it in this way.

    ``with FolderLock(folder): ...`` holds it; asking again meanwhile waits for oneself. A file lock on ``.lock`` guards
    it, which ends with its process. Where the file system has none, the folder goes to whoever could make the file
    ``.lock.lease``, until he ends; from another machine, his touches of the file show that he has not, so that one
    who cannot touch it for a minute loses the folder. A lock that is given back leaves no file.

    Args:
        folder: exists; wait: until it is free, where one would else refuse.

    Raises:
        UserError: without ``wait``, the folder is in use; the sentence names folder, process and host.
        OSError: no file can be written to the folder.
    """

    POLL, BEAT, SILENCE = 0.1, 2.0, 60.0  # seconds between attempts, between touches, and until none means the end

    def __init__(self, folder: str | Path, *, wait: bool = True) -> None:
        self.folder, self.wait = Path(folder), wait

    def __enter__(self) -> Self:
        lock = self._make_lock()
        # A file lock that is taken has an owner, who may be about to write his name. A lease may be left behind.
        patience = 0.2 if isinstance(lock, FileLock) else self.SILENCE + self.BEAT
        start, told, owner, touches = time.monotonic(), False, "another process", set()
        while not lock.is_locked:
            with suppress(Timeout):
                lock.acquire(blocking=False)
                continue
            with suppress(FileNotFoundError):  # given back by now
                owner = _owner(lock) or owner
                touches.add(os.stat(lock.lock_file).st_mtime_ns)
            waited = time.monotonic() - start
            if not self.wait and (len(touches) > 1 or waited > patience):
                raise UserError(f"{self.folder} is in use by {owner}: wait until that ends, end it, or choose another "
                                f"folder (if there is no such process, delete {lock.lock_file})")
            if not told and waited > 1:
                told = True
                say(f"waiting for {owner}, which uses {self.folder}")
            time.sleep(self.POLL)
        self._lock, self._file = lock, os.stat(lock.lock_file)
        return self

    def __exit__(self, *_: object) -> None:
        # It is not locked in a forked child, and may be another's where it was removed.
        if isinstance(self._lock, FileLock) and self._lock.is_locked and not self._lost():
            with suppress(OSError):  # where the folder may not be written to any more
                Path(self._lock.lock_file).unlink()
        self._lock.release()

    def renew(self) -> None:
        """Hold the folder, which exists, again if it is another one now; a UserError, if somebody else has it."""
        if self._lost():
            self._lock.release()
            self.wait = False
            self.__enter__()

    def _lost(self) -> bool:
        """Whether the file that is locked is no longer the one with its name."""
        try:
            return isinstance(self._lock, FileLock) and not os.path.samestat(os.stat(self._lock.lock_file), self._file)
        except FileNotFoundError:
            return True

    def _make_lock(self) -> FileLock | SoftFileLease:
        """A lock of the kind that the file system has."""
        path = self.folder.absolute() / ".lock"
        with TemporaryFile(dir=self.folder) as probe:
            try:
                fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (*UNKNOWN, errno.ENOLCK):
                    raise
                loss = f"WARNING: another process took {self.folder}, as it saw no sign of this one: stop one of them"
                return SoftFileLease(f"{path}.lease", lease_duration=self.SILENCE, heartbeat_interval=self.BEAT,
                                     on_compromise=lambda _: say(loss), thread_local=False)
        return FileLock(path, on_acquired=_sign, fallback_to_soft=False, thread_local=False)


def _sign(descriptor: int) -> None:
    """Write the owner's name to the file that he has locked."""
    with suppress(OSError):  # the name is for people; a full disk must not keep him out
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {platform.node()}".encode())


def _owner(lock: FileLock | SoftFileLease) -> str:
    """The name of the owner, empty where he has not written it."""
    if isinstance(lock, FileLock):
        return Path(lock.lock_file).read_text(errors="replace")
    owner = lock.owner
    return f"process {owner.pid} on {owner.hostname.partition('?')[0]}" if owner else ""  # '?': of its namespaces
