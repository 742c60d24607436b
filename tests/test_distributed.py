"""Several processes train the same network as one: real processes, gloo, on the CPU."""
import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from modules import FeedbackSNN, synapses
from tests import preloaded
from tests.cifar import make_batches
from tests.processes import BRIEF, REPOSITORY, environment
from tests.small import small
from utils import distributed

# Dropout and augmentation are on; 38 images in batches of 4 make a last batch of 2, fewer than 3 processes.
ALEXNET = ("cifar_alexnetf.py", *BRIEF, "--train-batch", 4, "--warmup", 0, "-t", 4, "-tb", 6, "-j", 0)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A CIFAR-10 of 38 training images and 7 test images."""
    root = tmp_path_factory.mktemp("images")
    folder = make_batches(root, images=8)
    for name, keep in (("data_batch_5", 6), ("test_batch", 7)):
        batch = pickle.loads((folder / name).read_bytes())
        (folder / name).write_bytes(pickle.dumps({**batch, "data": batch["data"][:keep],
                                                  "labels": batch["labels"][:keep]}))
    return root


def launch(processes: int, float_type: str, *flags: object, launcher: tuple[str, ...] = ()) -> list[str]:
    """The command line of ``torchrun`` for a script with few channels; one process needs no launcher."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *launcher]
    return [sys.executable, *(torchrun if processes > 1 else []), "-m", "tests.narrow", float_type, *map(str, flags)]


def finish(processes: int, float_type: str, *flags: object) -> str:
    """Output of a job that ends well; its processes are told what a launcher tells them, and have its store."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    job = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
           "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    ranks: list[preloaded.Popen] = []
    try:
        for rank in range(processes):
            own = environment(**job, RANK=str(rank), LOCAL_RANK=str(rank)) if processes > 1 else environment()
            ranks.append(preloaded.Popen(launch(1, float_type, *flags), cwd=REPOSITORY, env=own, text=True,
                                         stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        deadline = time.monotonic() + 180
        while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
            assert time.monotonic() < deadline, "the job does not end"
            time.sleep(0.02)
    finally:
        for rank in ranks:
            rank.kill()
        ends = [(*rank.communicate(), rank.returncode) for rank in ranks]
    assert not any(status for *_, status in ends), ends
    return "".join(output for output, *_ in ends)


@contextmanager
def job(processes: int, *flags: object):
    """A job in the background."""
    process = subprocess.Popen(launch(processes, "float32", *flags), cwd=REPOSITORY, env=environment(),
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        for member in members(process.pid):
            os.kill(member, signal.SIGKILL)
        process.kill()
        process.communicate()


def members(launcher: int) -> list[int]:
    """Process ids of the ranks that a launcher started."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(launcher)], capture_output=True, text=True).stdout
    return [int(pid) for pid in listed.split()]


def stored(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pth.tar", weights_only=True)


def wait_for(folder: Path, iteration: int, process: subprocess.Popen) -> None:
    while not (folder / "checkpoint.pth.tar").exists() or stored(folder)["iteration"] < iteration:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)


def assert_close(a: Path, b: Path, tolerance: float) -> None:
    """Weights, momentum and statistics of two runs agree."""
    first, second = stored(a), stored(b)
    assert first["iteration"] == second["iteration"] and first["epoch"] == second["epoch"]
    for name, value in first["state_dict"].items():
        torch.testing.assert_close(value, second["state_dict"][name], rtol=tolerance, atol=tolerance, msg=name)
    for rows in zip(first["history"], second["history"], strict=True):
        assert rows[0] == pytest.approx(rows[1], rel=max(tolerance, 1e-6), abs=tolerance)
    for name, total in first["meters"]["sums"].items():
        torch.testing.assert_close(total, second["meters"]["sums"][name], rtol=max(tolerance, 1e-6), atol=tolerance)


@pytest.fixture(scope="module")
def alone(images, tmp_path_factory) -> Path:
    """The run that others are compared with: one process, float64, 25 iterations, two and a half epochs."""
    folder = tmp_path_factory.mktemp("alone")
    finish(1, "float64", *ALEXNET, "--path", images, "--max-iters", 25, "-c", folder)
    assert stored(folder)["iteration"] == 25 and len(stored(folder)["history"]) == 2
    return folder


@pytest.mark.parametrize("processes, flags", [(2, ()), (3, ()), (1, ("--accumulate", 4)), (2, ("--accumulate", 2))])
def test_the_same_network_in_float64(processes, flags, images, alone, tmp_path) -> None:
    """Two or three processes, or a batch in parts: the weights of one process to 1e-10, and its log."""
    output = finish(processes, "float64", *ALEXNET, *flags, "--path", images, "--max-iters", 25, "-c", tmp_path)
    assert_close(tmp_path, alone, 1e-10)
    assert output.count("finished after") == 1 and output.count("network    AlexNetF") == 1


def test_float32_within_rounding(images, tmp_path) -> None:
    """In float32 sums differ in their last bits: after five iterations by no more than that explains."""
    for processes in (1, 2):
        finish(processes, "float32", *ALEXNET, "--path", images, "--max-iters", 5, "-c", tmp_path / str(processes))
    assert_close(tmp_path / "1", tmp_path / "2", 1e-4)


@pytest.mark.parametrize("parts", [(3, 3), (2, 2, 2), (1, 5)])
def test_dyadic_gradients_bit_for_bit(parts) -> None:
    """Where all sums are exact, the gradients of shares add up to those of the batch, to the last bit."""
    torch.manual_seed(0)
    network = FeedbackSNN(input=synapses.Conv2d(2, 4, 3, stride=2, dropout=0.5), layers=[synapses.Conv2d(4, 6, 3)],
                          feedback=synapses.ConvTranspose2d(6, 4, 3, dropout=0.5), time_step=8, time_step_back=16)
    network = network.double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_((parameter * 3 * 64).round() / 64)
    x, keys = (torch.randn(6, 2, 8, 8).double() * 64).round() / 64, torch.arange(6)
    rates = network(x, keys=keys)
    gradient = (torch.randn_like(rates) * 64).round() / 64
    rates.backward(gradient)
    whole = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    for share, own, g in zip(x.split(parts), keys.split(parts), gradient.split(parts)):
        network(share, keys=own).backward(g)
    assert all(torch.equal(a, p.grad) and a.any() for a, p in zip(whole, network.parameters()))


def test_resume_on_another_number_of_processes(images, alone, tmp_path) -> None:
    """Two processes stop in the middle of an epoch, three go on, one finishes: the weights of one all the way."""
    flags = (*ALEXNET, "--path", images, "-c", tmp_path, "--resume", "auto", "--max-iters")
    for processes, iterations in ((2, 7), (3, 16), (1, 25)):
        finish(processes, "float64", *flags, iterations)
    first, second = stored(tmp_path), stored(alone)
    for name, value in first["state_dict"].items():
        torch.testing.assert_close(value, second["state_dict"][name], rtol=1e-10, atol=1e-10, msg=name)
    assert [row[1] for row in first["history"]] == pytest.approx([row[1] for row in second["history"]], rel=1e-9)


def test_going_on_in_another_folder(images, tmp_path) -> None:
    """The first process alone writes what the run was into the new folder, while the others wait for it to train on."""
    first, second = tmp_path / "first", tmp_path / "second"
    finish(2, "float32", *ALEXNET, "--path", images, "--max-iters", 2, "-c", first)
    finish(2, "float32", *ALEXNET, "--path", images, "--max-iters", 3, "-c", second, "--resume",
           first / "checkpoint.pth.tar")
    assert (stored(first)["iteration"], stored(second)["iteration"]) == (2, 3)


def test_evaluation_counts_every_sample_once(images, tmp_path) -> None:
    """7 test images in batches of 3 over 2 processes: the accuracy and loss of one process."""
    finish(1, "float32", *ALEXNET, "--path", images, "--max-iters", 1, "-c", tmp_path)
    flags = ("cifar_alexnetf.py", "--resume", tmp_path / "checkpoint.pth.tar", "-e", "--gpu-id", -1, "--test-batch", 3)
    one, two = (finish(n, "float32", *flags).splitlines()[-1] for n in (1, 2))
    assert one == two and one.startswith("test: loss")


def test_sigterm_to_the_launcher_saves_once(images, tmp_path) -> None:
    """torchrun passes SIGTERM on; all processes stop after the same iteration, and one of them saves."""
    with job(2, *ALEXNET, "--path", images, "--save-every", 2, "-c", tmp_path) as process:
        wait_for(tmp_path, 2, process)
        process.send_signal(signal.SIGTERM)
        output = process.communicate(timeout=60)[0]
    assert output.count("stopped by SIGTERM") == 1, output
    assert f"after {stored(tmp_path)['iteration']} iterations" in output
    assert not list(tmp_path.glob(".*"))


def test_killed_launcher_does_not_leave_processes_behind(images, tmp_path) -> None:
    """When the launcher is killed outright, its processes save and end."""
    with job(2, *ALEXNET, "--path", images, "--save-every", 2, "-c", tmp_path) as process:
        wait_for(tmp_path, 2, process)
        ranks = members(process.pid)
        assert len(ranks) == 2
        process.kill()
        process.wait()
        deadline = time.monotonic() + 30
        while any(Path(f"/proc/{rank}").exists() for rank in ranks):
            assert time.monotonic() < deadline, "processes outlived their launcher"
            time.sleep(0.1)
    assert stored(tmp_path)["iteration"] >= 2
    finish(1, "float32", *ALEXNET, "--path", images, "-c", tmp_path, "--resume", "auto",
           "--max-iters", stored(tmp_path)["iteration"] + 1)


def test_a_killed_process_ends_the_job_with_a_word(images, tmp_path) -> None:
    """One rank is killed: the job ends with a failure, the others say why, and the checkpoint is whole."""
    with job(2, *ALEXNET, "--path", images, "--save-every", 2, "-c", tmp_path) as process:
        wait_for(tmp_path, 2, process)
        os.kill(max(members(process.pid)), signal.SIGKILL)
        output = process.communicate(timeout=60)[0]
    assert process.returncode != 0 and "Signal 9 (SIGKILL)" in output, output
    own = [line for line in output.splitlines() if line.startswith("cifar_alexnetf: error")]
    assert all("another process of this job ended" in line for line in own)
    assert stored(tmp_path)["iteration"] >= 2


def test_restarts_of_the_launcher_go_on(images, alone, tmp_path) -> None:
    """``--max-restarts`` with ``--resume auto``: a killed rank costs the iterations since the last checkpoint only."""
    flags = (*ALEXNET, "--path", images, "--save-every", 1, "-c", tmp_path, "--resume", "auto", "--max-iters", 25)
    command = launch(2, "float64", *flags, launcher=("--max-restarts=2",))
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment(), stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)
    try:
        wait_for(tmp_path, 3, process)
        os.kill(max(members(process.pid)), signal.SIGKILL)
        output = process.communicate(timeout=120)[0]
    finally:
        process.kill()
    assert process.returncode == 0 and "resumed" in output, output
    for name, value in stored(tmp_path)["state_dict"].items():
        torch.testing.assert_close(value, stored(alone)["state_dict"][name], rtol=1e-10, atol=1e-10, msg=name)


def test_several_gpus_start_a_process_each(monkeypatch) -> None:
    """--gpu-id 0,1 hands over to PyTorch's launcher, which starts the same command line; its processes do not."""
    handed = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("os.execv", lambda path, command: handed.append(command))
    monkeypatch.setattr("sys.argv", ["cifar_alexnetf.py"])
    flags = ["--gpu-id", "0,1", "-c", "run"]
    distributed.start_processes("0,1", flags)
    assert handed[0][1:] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "cifar_alexnetf.py",
                             "--gpu-id", "0,1", "-c", "run"]
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    distributed.start_processes("0,1", flags)
    monkeypatch.delenv("RANK")
    distributed.start_processes("1", flags)
    assert len(handed) == 1


ALONE = """
import os
from tests.small import small
from utils.errors import UserError

def build_model(args):
    if os.environ["RANK"] in {ranks!r}:
        raise UserError("the model of this machine is missing")
    return small().build_model(args)

small(build_model=build_model).main()
"""


@pytest.mark.parametrize("ranks, said", [(("1",), "process 1 of 2: "), (("0", "1"), "")])
def test_whoever_fails_speaks(ranks, said, tmp_path) -> None:
    """A process that ends alone says why, whichever it is; those that end on the same sentence say it once."""
    script = tmp_path / "script.py"
    script.write_text(ALONE.format(ranks=ranks))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120)
    own = [line for line in done.stderr.splitlines() if "the model of this machine is missing" in line]
    assert done.returncode != 0 and len(own) == 1, done.stderr
    assert own[0].startswith(f"script: error: {said}" if said else "script: error: ")


@pytest.mark.parametrize("left, words", [
    ({"RANK": "3"}, "--lr must be a positive number"), ({"RANK": "1", "WORLD_SIZE": "1"}, "--lr must be a positive"),
    ({"RANK": "1", "WORLD_SIZE": "2"}, "RANK=1, WORLD_SIZE=2, MASTER_ADDR=None"),
    ({"RANK": "x", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK=x"),
    ({"RANK": "0", "WORLD_SIZE": "two", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "WORLD_SIZE=two"),
    ({"RANK": "5", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK=5"),
    ({"RANK": "0", "WORLD_SIZE": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "WORLD_SIZE=0"),
    ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "65536"}, "MASTER_PORT=65536"),
    ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "no host.invalid", "MASTER_PORT": "1"},
     "the processes of this job cannot meet at no host.invalid:1")])
def test_variables_that_no_launcher_set(left, words, monkeypatch, tmp_path) -> None:
    """A process that is alone speaks, whatever was left behind in its environment."""
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stopped:
        small().main(["--lr", "0", "-c", str(tmp_path)])
    assert isinstance(stopped.value.code, str) and words in stopped.value.code


def test_waiting_for_the_others_is_said(tmp_path) -> None:
    """A process whose job never comes together says what it waits for, and which variables say so."""
    code = "from utils import distributed; distributed.WORD_AFTER = 0.1; distributed.join()"
    left = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29999"}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment(**left), stderr=subprocess.PIPE, text=True)
    try:
        line = process.stderr.readline()
    finally:
        process.kill()
        process.communicate()
    assert "process 1 of 2 waits for the others at 127.0.0.1:29999, as RANK and WORLD_SIZE say" in line
