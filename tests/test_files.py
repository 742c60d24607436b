"""Files that are whole whatever happens, and folders that one process uses at a time, with file locks and without."""
import errno
import fcntl
import os
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.processes import environment
from utils import files
from utils.errors import UserError
from utils.files import FolderLock, remove_leftovers, replacing, write_atomically

ERRORS = [0, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS]  # that a file lock ends with; 0 for none
WITHOUT_LOCKS = """
import fcntl, os
def refuse(descriptor, operation):
    raise OSError({error}, os.strerror({error}))
if {error}:
    fcntl.flock = refuse
"""
LEASE = "filelock/2\npid={pid}\nhost={host}\nmode=lease\ntoken=7f\nduration=0.5\nstart={start}\n"
HOLD = WITHOUT_LOCKS + """
import sys, time
from utils.files import FolderLock
FolderLock.BEAT = 0.2
with FolderLock({folder!r}):
    print("held", flush=True)
    time.sleep({seconds})
"""
COUNT = WITHOUT_LOCKS + """
from pathlib import Path
from utils.files import FolderLock
FolderLock.POLL = 0.001
for _ in range(25):
    with FolderLock({folder!r}):
        number = Path({folder!r}, "number").read_text()
        Path({folder!r}, "number").write_text("")
        Path({folder!r}, "number").write_text(str(int(number) + 1))
"""


@pytest.fixture(params=ERRORS, ids=lambda error: errno.errorcode.get(error, "locks"))
def error(request, monkeypatch) -> int:
    """What a file lock ends with here."""
    if request.param:
        def refuse(descriptor, operation):
            raise OSError(request.param, os.strerror(request.param))

        monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(FolderLock, "POLL", 0.01)
    monkeypatch.setattr(FolderLock, "BEAT", 0.2)
    return request.param


@pytest.fixture
def lease(monkeypatch) -> str:
    """What another machine writes to its file on a file system without locks, where signs of life come often."""
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for name, seconds in (("POLL", 0.01), ("BEAT", 0.05), ("SILENCE", 0.5)):
        monkeypatch.setattr(FolderLock, name, seconds)
    return LEASE.format(pid=os.getpid(), host="far-away", start=1)


def start(code: str, **values: object) -> subprocess.Popen:
    """A process that runs ``code``."""
    return subprocess.Popen([sys.executable, "-c", code.format(**values)], env=environment(), stdout=subprocess.PIPE,
                            text=True)


def hold(folder: Path, error: int, seconds: float = 60) -> subprocess.Popen:
    """A process that holds the folder now."""
    process = start(HOLD, folder=str(folder), error=error, seconds=seconds)
    assert process.stdout.readline() == "held\n"
    return process


# Locks


def test_second_process_is_refused(tmp_path, error):
    """One process at a time: another is refused by folder, process and host; once the first ends it gets in."""
    with hold(tmp_path, error, seconds=1) as owner:
        with pytest.raises(UserError) as refusal:
            FolderLock(tmp_path, wait=False).__enter__()
        for word in (str(tmp_path), f"process {owner.pid} ", platform.node()):
            assert word in str(refusal.value)
        with FolderLock(tmp_path):
            assert owner.wait(10) == 0
    with FolderLock(tmp_path, wait=False):
        pass


def test_killed_owner_leaves_no_lock(tmp_path, error):
    """A killed owner's lock is gone at once."""
    with hold(tmp_path, error) as owner:
        owner.kill()
        owner.wait()
        with FolderLock(tmp_path, wait=False):
            pass
    assert os.listdir(tmp_path) == []


def test_killed_owner_whose_parent_takes_no_notice(tmp_path, lease):
    """Without file locks he seems to be alive, but touches nothing."""
    code = HOLD.replace("FolderLock.BEAT", "FolderLock.SILENCE = 0.5\nFolderLock.BEAT")
    with start(code, folder=str(tmp_path), error=errno.ENOLCK, seconds=60) as owner:
        assert owner.stdout.readline() == "held\n"
        owner.kill()
        os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)
        with FolderLock(tmp_path, wait=False):
            pass


def test_lock_holds_among_threads(tmp_path, error):
    """Threads of one process exclude each other as processes do."""
    inside, most = [], []

    def work() -> None:
        with FolderLock(tmp_path):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert most == [1] * 5
    with FolderLock(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()} "):
        FolderLock(tmp_path, wait=False).__enter__()


@pytest.mark.parametrize("error", ERRORS[:2])
def test_nobody_is_lost_among_many(tmp_path, error):
    """Processes that take turns quickly, the first of them after a killed owner, never meet."""
    with hold(tmp_path, error) as owner:
        owner.kill()
    (tmp_path / "number").write_text("0")
    processes = [start(COUNT, folder=str(tmp_path), error=error) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert (tmp_path / "number").read_text() == "100"
    assert os.listdir(tmp_path) == ["number"]


def test_forked_child_does_not_hold_the_lock(tmp_path, error):
    """A child of the owner, as workers of loaders are, neither holds the folder beyond his end nor ends his lock."""
    def fork() -> int:
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
        return child

    with FolderLock(tmp_path) as lock:
        child = os.fork()
        if child == 0:
            lock.__exit__()
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(UserError):
            FolderLock(tmp_path, wait=False).__enter__()
        child = fork()
    try:
        with FolderLock(tmp_path, wait=False):
            pass
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_owner_elsewhere(tmp_path, lease):
    """Without file locks an owner on another machine counts as alive as long as he touches his file."""
    record = tmp_path / ".lock.lease"
    record.write_text(lease)
    stop = threading.Event()

    def touch() -> None:
        while not stop.wait(0.1):
            os.utime(record)

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        with pytest.raises(UserError, match=f"process {os.getpid()} on far-away"):
            FolderLock(tmp_path, wait=False).__enter__()
    finally:
        stop.set()
        thread.join()
    began = time.monotonic()
    with FolderLock(tmp_path, wait=False):
        assert time.monotonic() - began > 0.4 and record.read_text() != lease


def test_owner_shows_that_he_is_alive(tmp_path, lease):
    """The owner touches his file, so that it is never taken for left behind."""
    with FolderLock(tmp_path):
        for _ in range(3):
            before = (tmp_path / ".lock.lease").stat().st_mtime_ns
            time.sleep(0.2)
            assert (tmp_path / ".lock.lease").stat().st_mtime_ns > before


def test_owner_hears_that_he_lost_the_folder(tmp_path, lease, capsys):
    """An owner that was taken for gone, a suspended machine for one, says that two use the folder now."""
    with FolderLock(tmp_path):
        (tmp_path / ".lock.lease").unlink()
        time.sleep(0.3)
    assert f"another process took {tmp_path}" in capsys.readouterr().out


@pytest.mark.parametrize("contents", ['["a"', "17", "filelock/2\npid=3"])
def test_record_that_says_nothing(tmp_path, lease, contents):
    """A record that its writer did not finish keeps others out for as long as it may still be written."""
    (tmp_path / ".lock.lease").write_text(contents)
    began = time.monotonic()
    with FolderLock(tmp_path):
        assert time.monotonic() - began > 0.4


def test_record_that_is_empty(tmp_path, lease):
    """One who was killed before he wrote his name cannot be told from one who will: the sentence names the file."""
    (tmp_path / ".lock.lease").touch()
    with pytest.raises(UserError, match=f"another process: .*delete {tmp_path / '.lock.lease'}"):
        FolderLock(tmp_path, wait=False).__enter__()


def test_reused_number_of_a_process(tmp_path, lease):
    """A process that got the number of an owner who is gone is not taken for him."""
    with FolderLock(tmp_path):
        record = (tmp_path / ".lock.lease").read_text()
    words, started = record.strip().rsplit("=", 1)
    (tmp_path / ".lock.lease").write_text(f"{words}={int(started) - 1}\n")
    began = time.monotonic()
    with FolderLock(tmp_path, wait=False):
        assert time.monotonic() - began < 0.3


def test_lock_that_cannot_be_written(tmp_path, error):
    """A folder that is not there raises what the system says."""
    with pytest.raises(FileNotFoundError):
        FolderLock(tmp_path / "missing").__enter__()


def test_lock_on_a_file_that_is_gone(tmp_path, monkeypatch):
    """Whoever opens the owner's file just before that goes away does not take a lock on it for the folder."""
    flock, calls = fcntl.flock, []

    def release_first(descriptor: int, operation: int) -> None:
        if not calls and (tmp_path / ".lock").exists():
            (tmp_path / ".lock").unlink()
            calls.append(operation)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", release_first)
    with FolderLock(tmp_path), pytest.raises(UserError):
        assert calls
        FolderLock(tmp_path, wait=False).__enter__()


def test_interrupted_attempt(tmp_path, error, monkeypatch):
    """Whoever gives up while he waits leaves nothing behind and nothing held."""
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with FolderLock(tmp_path), monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(time, "sleep", interrupt)
        FolderLock(tmp_path).__enter__()
    assert os.listdir(tmp_path) == []


def test_no_file_is_left(tmp_path, error):
    """A lock that was given back, or refused, leaves nothing."""
    for _ in range(2):
        with FolderLock(tmp_path), pytest.raises(UserError):
            FolderLock(tmp_path, wait=False).__enter__()
        assert os.listdir(tmp_path) == []


# Files


def test_interrupted_writing(tmp_path):
    """A file that was not finished does not replace the old one, and leaves nothing beside it."""
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]
    with replacing(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
        file.seek(0)
        assert file.read() == b"new"
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["file"]


def test_leftovers(tmp_path):
    """What killed writers left goes, and nothing else."""
    for name in (".a.npy.12.part", "a.npy", ".lock", "b.part"):
        (tmp_path / name).write_bytes(b"")
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".lock", "a.npy", "b.part"]


@pytest.mark.parametrize("error, raised", [(errno.EINVAL, False), (errno.ENOSYS, False), (errno.EIO, True)])
def test_folders_that_cannot_be_flushed(tmp_path, monkeypatch, error, raised):
    """A file system that cannot flush folders can hold checkpoints; one that fails to do so says so."""
    flush = os.fsync

    def only_files(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(error, os.strerror(error))
        flush(descriptor)

    monkeypatch.setattr(files.os, "fsync", only_files)
    if raised:
        with pytest.raises(OSError, match="Input/output"):
            write_atomically(tmp_path / "file", b"new")
    else:
        write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
