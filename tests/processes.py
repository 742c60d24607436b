"""Training scripts as real processes, and what they leave behind."""
import os
import subprocess
import sys
from pathlib import Path

import torch

from tests import preloaded

REPOSITORY = Path(__file__).parents[1]
# A second of training: few steps, few iterations.
BRIEF = ("-t", "6", "-tb", "8", "--manualSeed", "3", "--gpu-id", "-1")


def command(script: str, *flags: object) -> list[str]:
    """The command line of a script; CIFAR-10 scripts run through :mod:`tests.cifar`."""
    launcher = ["-m", "tests.cifar"] if script.startswith("cifar") else []
    return [sys.executable, *launcher, script, *map(str, flags)]


def environment(**extra: str) -> dict[str, str]:
    """Few threads, as tests share a small machine."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **extra}


def run(script: str, *flags: object, timeout: float = 120) -> subprocess.CompletedProcess:
    """Run a script to its end."""
    return preloaded.run(command(script, *flags), cwd=REPOSITORY, env=environment(), timeout=timeout)


def succeed(script: str, *flags: object) -> str:
    """Output of a script that ends well."""
    done = run(script, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def same_state(a: Path, b: Path) -> None:
    """Assert that two runs ended with the same bits: weights, optimizer, progress, log."""
    first, second = (torch.load(folder / "checkpoint.pth.tar", weights_only=True) for folder in (a, b))
    for key in ("state_dict", "optimizer", "epoch", "batch", "iteration", "best_acc", "history", "meters"):
        assert equal(first[key], second[key]), key
    assert (a / "log.txt").read_bytes() == (b / "log.txt").read_bytes()


def equal(a: object, b: object) -> bool:
    """Equality of nested containers with tensors in them, bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(value, b[key]) for key, value in a.items())
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b
