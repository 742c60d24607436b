"""The four scripts as processes: train, resume, evaluate, on small files in the true formats."""
import json
import subprocess

import pytest

from tests.cifar import make_batches
from tests.processes import BRIEF, REPOSITORY, command, environment, same_state, succeed
from tests.recordings import make_dataset

SCRIPTS = {
    "mnist_lenet.py": ("-d", "digits", "--train-batch", 300),
    "cifar_alexnetf.py": ("--train-batch", 16, "-j", 1),
    "cifar_cifarnetf.py": ("--train-batch", 16, "-j", 0, "-t", 2, "-tb", 2),
    "dvs_cifar_convnetf.py": ("--train-batch", 8, "-j", 0, "--data-len", 4, "-t", 3, "-tb", 2),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """CIFAR batches with 40 training images, and 20 training and 10 test recordings of 500 events."""
    root = tmp_path_factory.mktemp("data")
    make_batches(root)
    make_dataset(root, train=2, test=1, events=500)
    return root


@pytest.mark.parametrize("script", SCRIPTS)
def test_train_resume_evaluate(script, data, tmp_path) -> None:
    """A run in two parts ends as a run in one, and evaluation prints the same twice."""
    flags = (*BRIEF, *SCRIPTS[script], "--path", data, "--epochs", 2, "--test-limit", 8)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    output = subprocess.run(command(script, *flags, "-c", whole), cwd=REPOSITORY, env=environment(), timeout=120,
                            check=True, capture_output=True, text=True).stdout  # an interpreter of its own
    assert "parameters" in output and "finished after 2 epochs" in output
    assert (whole / "log.txt").read_text().startswith("Learning Rate\tTrain Loss\tValid Loss\tTrain Acc.")
    assert len((whole / "log.txt").read_text().splitlines()) == 3
    assert (whole / "log.png").read_bytes().startswith(b"\x89PNG") and (whole / "script.py").exists()
    assert json.loads((whole / "args.json").read_text())["arguments"]["epochs"] == 2

    succeed(script, *flags, "-c", parts, "--max-iters", 2)
    succeed(script, "--resume", parts / "checkpoint.pth.tar", "--gpu-id", -1, "--test-limit", 8)
    same_state(whole, parts)

    evaluation = ("--resume", whole / "model_best.pth.tar", "--evaluate", "--gpu-id", -1, "--test-limit", 8)
    first, second = (succeed(script, *evaluation) for _ in range(2))
    assert first == second and "top-1" in first


def test_dry_run_checks_and_writes_nothing(data, tmp_path) -> None:
    """--dry-run prints the configuration, reads data, and leaves no folder."""
    output = succeed("mnist_lenet.py", "-d", "digits", "--dry-run", "-c", tmp_path / "none", "--time-step", 4)
    assert "in order" in output and "time_step=4" in output and not (tmp_path / "none").exists()
