"""A run survives anything: killed, stopped by signals, on a full disk, a run ends with the bits of one left alone.

The environment variable ``KILLS`` sets how often a run is killed, 5 times unless given.
"""
import os
import random
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

from tests import preloaded
from tests.cifar import make_batches
from tests.processes import BRIEF, REPOSITORY, command, environment, run, same_state, succeed
from tests.small import small, stored
from utils import metrics

KILLS = int(os.environ.get("KILLS", 5))
# Augmentation and dropout are on, the last batch of an epoch is smaller, and 39 iterations are three epochs.
ALEXNET = ("cifar_alexnetf.py", *BRIEF, "--train-batch", 3, "--epochs", 3, "-t", 3, "-tb", 4, "--log-every", 3)
LENET = ("mnist_lenet.py", "-d", "digits", *BRIEF, "--test-limit", 40)


@contextmanager
def running(*arguments: object, **settings) -> Iterator[subprocess.Popen]:
    """A script in the background, killed at the end if it still runs."""
    popen = subprocess.Popen if settings else preloaded.Popen
    process = popen(command(*arguments), cwd=REPOSITORY, env=environment(), stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT, text=True, **settings)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen, words: str) -> str:
    """Output of a process up to the line that holds ``words``."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return "".join(lines)
    raise AssertionError(f"'{words}' was not printed in:\n{''.join(lines)}")


def wait_for_iteration(process: subprocess.Popen, folder: Path, number: int) -> None:
    """Wait until a run that saves after every iteration has done so many."""
    read_until(process, "arguments")
    while not (folder / "checkpoint.pth.tar").exists() or iteration(folder) < number:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)


def iteration(folder: Path) -> int:
    return torch.load(folder / "checkpoint.pth.tar", weights_only=True)["iteration"]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A CIFAR-10 of 38 training images and a few test images."""
    root = tmp_path_factory.mktemp("images")
    make_batches(root)
    return root


def test_killed_runs_end_as_one_left_alone(images, tmp_path) -> None:
    """SIGKILL at random moments, with 0 and with 2 workers in turn: weights, optimizer, log and evaluation agree."""
    flags = (*ALEXNET, "--path", images, "--save-every", 2)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    succeed("mnist_lenet.py", "--help")  # whatever takes its time once
    began = time.monotonic()
    succeed(*flags, "-j", 0, "-c", whole)
    duration = time.monotonic() - began
    moments, alive = random.Random(KILLS), 0
    for kill in range(KILLS):
        with running(*flags, "-j", 2 * (kill % 2), "-c", killed, "--resume", "auto") as process:
            time.sleep(moments.uniform(0.1, 0.3) * duration)
            alive += process.poll() is None
            process.kill()
    assert alive > KILLS / 2
    succeed(*flags, "-j", 2, "-c", killed, "--resume", "auto")
    same_state(whole, killed)
    assert not list(killed.glob(".*"))
    rows = [[{name: value for name, value in row.items() if name != "seconds"} for row in metrics.read(folder)]
            for folder in (whole, killed)]
    assert rows[0] == rows[1] and [row["iteration"] for row in rows[0] if row["phase"] == "train"] == [*range(3, 43, 3)]
    assert len((killed / "metrics.jsonl").read_bytes().splitlines()) == len(rows[1])
    evaluations = [succeed("cifar_alexnetf.py", "--resume", folder / "model_best.pth.tar", "-e", "--gpu-id", -1)
                   for folder in (whole, killed)]
    assert evaluations[0].splitlines()[-1] == evaluations[1].splitlines()[-1]


STOPPED = (*LENET, "--train-batch", 300, "--epochs", 2, "-j", 2)


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    succeed(*STOPPED, "-c", folder)
    return folder


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_stopping_signals(number, status, never_stopped, tmp_path) -> None:
    """SIGTERM, SIGINT and a lost connection save after the running iteration; the rest gives the same bits."""
    folder = tmp_path / "run"
    with running(*STOPPED, "-c", folder, "--save-every", 1, start_new_session=True,
                 preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)) as process:
        wait_for_iteration(process, folder, 2)
        os.killpg(process.pid, number)  # as a terminal or a scheduler does: to the workers too
        output = process.communicate(timeout=60)[0]
    assert process.returncode == status, output
    assert f"go on with --resume {folder / 'checkpoint.pth.tar'}" in output
    done = iteration(folder)
    assert 2 <= done < 10
    succeed(*STOPPED, "--resume", folder / "checkpoint.pth.tar")
    same_state(folder, never_stopped)


def test_signal_during_evaluation(tmp_path) -> None:
    """A run that is stopped while it evaluates saves the trained epoch, and begins with the evaluation on resume."""
    flags = ("mnist_lenet.py", "-d", "digits", *BRIEF, "--train-batch", 1000, "--test-batch", 1,
             "--test-limit", 120, "--epochs", 1)
    folder, whole = tmp_path / "run", tmp_path / "whole"
    with running(*flags, "-c", folder, "--save-every", 2) as process:
        read_until(process, "arguments")
        while not (folder / "checkpoint.pth.tar").exists():  # after the last iteration of the epoch
            time.sleep(0.01)
        time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert "stopped by SIGTERM" in process.communicate(timeout=60)[0]
    stored = torch.load(folder / "checkpoint.pth.tar", weights_only=True)
    assert process.returncode == 143 and stored["iteration"] == 2 and not stored["evaluated"]
    succeed(*flags, "-c", folder, "--resume", "auto")
    succeed(*flags, "-c", whole)
    same_state(folder, whole)


def test_checkpoint_on_request(tmp_path) -> None:
    """SIGUSR1 writes a checkpoint and training goes on; signals while a checkpoint is written leave it whole."""
    flags = (*LENET, "--train-batch", 100, "--epochs", 1, "--save-every", 1, "-c", tmp_path)
    with running(*LENET, "--train-batch", 100, "--epochs", 1, "-c", tmp_path) as process:
        read_until(process, "arguments")
        while not (tmp_path / "checkpoint.pth.tar").exists():
            assert process.poll() is None
            process.send_signal(signal.SIGUSR1)
            time.sleep(0.05)
        asked = iteration(tmp_path)
        assert process.wait(timeout=60) == 0
    assert asked < 15 and iteration(tmp_path) == 15
    with running(*flags) as process:  # saves nearly all the time
        wait_for_iteration(process, tmp_path, 1)
        for _ in range(20):
            process.send_signal(signal.SIGUSR1)
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) in (143, 0)
    assert iteration(tmp_path) >= 1 and not list(tmp_path.glob(".*.part"))


def test_second_interrupt_stops_at_once(tmp_path) -> None:
    """A second Ctrl-C does not wait for the end of an iteration, and leaves the files whole."""
    with running(*LENET, "-c", tmp_path, "--save-every", 1) as process:
        wait_for_iteration(process, tmp_path, 1)
    before = iteration(tmp_path)
    slow = ("mnist_lenet.py", "--resume", tmp_path / "checkpoint.pth.tar", "-t", 6, "-tb", 20000, "--override")
    with running(*slow, "--gpu-id", -1) as process:
        read_until(process, "arguments")
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        read_until(process, "SIGINT received")
        time.sleep(1.2)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130 and time.monotonic() - began < 2
    assert iteration(tmp_path) == before


def test_full_disk(tmp_path) -> None:
    """While no checkpoint can be written training goes on with a warning; the old one stays, a later one succeeds."""
    succeed(*LENET, "--max-iters", 1, "-c", tmp_path)
    before = (tmp_path / "checkpoint.pth.tar").read_bytes()

    def limit(size: int, pid: int) -> None:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    flags = ("mnist_lenet.py", "--resume", tmp_path / "checkpoint.pth.tar", "--gpu-id", -1, "--test-limit", 40)
    with running(*flags, "--save-every", 1, "--max-iters", 20) as process:
        limit(100_000, process.pid)
        read_until(process, "could NOT be written")
        assert (tmp_path / "checkpoint.pth.tar").read_bytes() == before
        limit(resource.RLIM_INFINITY, process.pid)
        assert "finished" in process.communicate(timeout=60)[0] and process.returncode == 0
    assert iteration(tmp_path) == 20

    before = (tmp_path / "checkpoint.pth.tar").read_bytes()
    with running(*flags, "--max-iters", 21) as process:
        limit(100_000, process.pid)
        output = process.communicate(timeout=60)[0]
    assert process.returncode == 1 and "the last checkpoint could not be written" in output
    assert (tmp_path / "checkpoint.pth.tar").read_bytes() == before and not list(tmp_path.glob(".*.part"))


def test_folder_removed_while_training(tmp_path) -> None:
    """A folder that disappears is made anew at the next save, for this run alone."""
    folder = tmp_path / "run"
    with running(*LENET, "-c", folder, "--train-batch", 15, "--save-every", 1, "--epochs", 1) as process:
        wait_for_iteration(process, folder, 2)
        process.send_signal(signal.SIGSTOP)
        shutil.rmtree(folder)
        process.send_signal(signal.SIGCONT)
        while not (folder / "checkpoint.pth.tar").exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGSTOP)
        assert f"is in use by process {process.pid} on " in run(*LENET, "-c", folder).stderr
        process.send_signal(signal.SIGCONT)
        assert process.wait(timeout=60) == 0
    assert iteration(folder) == 96 and not (folder / ".lock").exists()


def test_folder_removed_and_begun_anew(tmp_path) -> None:
    """The first run ends with a sentence at its next save, and leaves alone what the second one writes there."""
    folder = tmp_path / "run"
    with running(*LENET, "-c", folder, "--train-batch", 5, "--save-every", 1) as first:
        wait_for_iteration(first, folder, 2)
        first.send_signal(signal.SIGSTOP)
        shutil.rmtree(folder)
        with running(*LENET, "-c", folder, "--train-batch", 100, "--save-every", 1, "--epochs", 1) as second:
            wait_for_iteration(second, folder, 1)
            second.send_signal(signal.SIGSTOP)
            first.send_signal(signal.SIGCONT)
            said = first.communicate(timeout=60)[0].splitlines()[-1]
            assert f"{folder} is in use by process {second.pid} on " in said and first.returncode == 1
            assert (folder / ".lock").exists()
            second.send_signal(signal.SIGCONT)
            assert second.wait(timeout=60) == 0
    assert iteration(folder) == 15
    assert torch.load(folder / "checkpoint.pth.tar", weights_only=True)["arguments"]["train_batch"] == 100


def test_fresh_run_sets_the_old_one_aside(tmp_path) -> None:
    """A run without --resume in the folder of another loses nothing of it, nor of a killed writer's target."""
    succeed(*LENET, "--max-iters", 1, "-c", tmp_path)
    before = (tmp_path / "checkpoint.pth.tar").read_bytes()
    (tmp_path / ".checkpoint.pth.tar.123.part").write_bytes(before[:1000])
    succeed(*LENET, "--max-iters", 2, "-c", tmp_path)
    assert (tmp_path / "previous-1/checkpoint.pth.tar").read_bytes() == before
    assert iteration(tmp_path) == 2 and not list(tmp_path.glob(".*.part"))


def test_resubmitted_for_ever(tmp_path) -> None:
    """One command line with --resume auto begins, goes on, and then finds all done and changes nothing."""
    flags = (*LENET, "--train-batch", 300, "--epochs", 1, "-c", tmp_path, "--resume", "auto")
    assert "finished after 1 epochs, 5 iterations" in succeed(*flags)
    before = (tmp_path / "checkpoint.pth.tar").read_bytes()
    assert "finished after 1 epochs, 5 iterations" in succeed(*flags)
    assert (tmp_path / "checkpoint.pth.tar").read_bytes() == before


def test_read_only_folder() -> None:
    """Where no folder can be made, the run does not start."""
    done = run(*LENET, "-c", "/proc/run")
    assert done.returncode == 1 and "cannot write checkpoints to /proc/run" in done.stderr


def test_two_runs_do_not_mix(tmp_path) -> None:
    """The second one is refused and the first goes on; killed outright, it leaves nothing that keeps out a third."""
    flags = (*LENET, "-c", tmp_path, "--resume", "auto")
    with running(*flags, "--save-every", 1) as process:
        wait_for_iteration(process, tmp_path, 1)
        second = run(*flags)
        assert second.returncode == 1 and f"{tmp_path} is in use by process {process.pid} on" in second.stderr
        wait_for_iteration_after(process, tmp_path, iteration(tmp_path))
    done = iteration(tmp_path)
    assert f"{done + 1} iterations" in succeed(*flags, "--max-iters", done + 1)
    assert not list(tmp_path.glob(".lock*"))


def wait_for_iteration_after(process: subprocess.Popen, folder: Path, before: int) -> None:
    while iteration(folder) <= before:
        assert process.poll() is None
        time.sleep(0.02)


def test_under_nohup_a_lost_connection_is_ignored(tmp_path) -> None:
    with running(*LENET, "-c", tmp_path, "--save-every", 1, "--epochs", 1,
                 preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as process:
        wait_for_iteration(process, tmp_path, 1)
        process.send_signal(signal.SIGHUP)
        assert "finished after 1 epochs" in process.communicate(timeout=100)[0] and process.returncode == 0


@pytest.mark.parametrize("extra", [
    {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}, {"NUMBA_DISABLE_JIT": "1"},
    {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}])
def test_environments_of_other_programs(extra, tmp_path) -> None:
    """A notebook's backend, a debugger's switch, a terminal without umlauts: the run ends well, picture and all."""
    folder = tmp_path / "räume"
    done = subprocess.run(command(*LENET, "--max-iters", 1, "-c", folder), cwd=REPOSITORY, env=environment(**extra),
                          capture_output=True, timeout=120)
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    assert iteration(folder) == 1 and (folder / "log.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("reader", ["| true", "| head -n 1", ">&-", "> /dev/full"])
def test_nobody_reads(reader, tmp_path) -> None:
    """A reader that goes away, none at all, a full disk: what is printed is lost, and nothing else; status 0."""
    line = " ".join(command(*LENET, "--max-iters", 2, "-c", tmp_path))
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {line} {reader}"], cwd=REPOSITORY, env=environment(),
                          stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert iteration(tmp_path) == 2 and (tmp_path / "log.txt").exists()


def test_in_a_thread(tmp_path, capsys) -> None:
    """Where no signal can be heard a run says so, and trains; a mistake is said too, as nobody gets the status."""
    for flags, words in (((), "finished after 2 epochs"), (("--lr", "0"), "--lr must be a positive number")):
        def main(*flags: str) -> None:
            with suppress(SystemExit):  # which a thread ends on without a word
                small().main(["-c", str(tmp_path), *flags])

        thread = threading.Thread(target=main, args=flags)
        thread.start()
        thread.join()
        printed = capsys.readouterr()
        assert words in printed.out + printed.err and "Traceback" not in printed.err
        assert ("cannot hear of signals" in printed.out) == (not flags)
    assert stored(tmp_path)["epoch"] == 2
