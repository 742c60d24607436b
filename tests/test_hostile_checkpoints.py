"""Checkpoints that are damaged or hostile: an error in one sentence or a correct load; never a crash, never code run.

The environment variable ``MUTATIONS`` sets the number of damaged files, 200 unless given.
"""
import collections
import errno
import os
import random
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.processes import BRIEF, REPOSITORY, equal, run
from tests.test_experiment import raising
from utils import checkpoint
from utils.errors import UserError

MUTATIONS = int(os.environ.get("MUTATIONS", 200))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A checkpoint of LeNet on digits."""
    folder = tmp_path_factory.mktemp("trained")
    done = run("mnist_lenet.py", "-d", "digits", *BRIEF, "--max-iters", 1, "--test-limit", 4, "-c", folder)
    assert done.returncode == 0, done.stderr
    return folder / "checkpoint.pth.tar"


def resume(path: Path, monkeypatch) -> str | None:
    """Resume a checkpoint, as far as the start of training; the sentence that this ends with, or None if it is good."""
    state = torch.get_rng_state()
    monkeypatch.setattr(sys, "argv", ["mnist_lenet.py", "-d", "digits", "--resume", str(path), "--dry-run"])
    try:
        runpy.run_path(str(REPOSITORY / "mnist_lenet.py"), run_name="__main__")
    except SystemExit as stopped:
        assert isinstance(stopped.code, str) and "Traceback" not in stopped.code
        return stopped.code
    finally:
        torch.set_rng_state(state)


def mutate(contents: bytes, draw: random.Random) -> bytes:
    """Damage of the kinds that disks, networks and people do."""
    spoilt, size = bytearray(contents), len(contents)
    # Most bytes are weights; half of the damage is done to the ends, where the structure is.
    ends = draw.choice([draw.randrange(20_000), size - 1 - draw.randrange(20_000)])
    place = draw.choice([draw.randrange(size), ends])
    kind = draw.choice(["flip", "flip", "flip", "cut", "zeros", "noise", "insert", "remove"])
    length = draw.choice([1, 7, 512, 65_536])
    if kind == "flip":
        for _ in range(draw.choice([1, 1, 8])):
            spoilt[(place + draw.randrange(64)) % size] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del spoilt[place:]
    elif kind == "zeros":
        spoilt[place:place + length] = bytes(len(spoilt[place:place + length]))
    elif kind == "noise":
        spoilt[place:place + length] = draw.randbytes(len(spoilt[place:place + length]))
    elif kind == "insert":
        spoilt[place:place] = draw.randbytes(length)
    else:
        del spoilt[place:place + length]
    return bytes(spoilt)


def test_mutated_checkpoints(trained, tmp_path, monkeypatch) -> None:
    """Every damaged file gives a sentence that names it, or loads with the very contents that were written."""
    whole, good, draw = trained.read_bytes(), checkpoint.load(trained).contents, random.Random(MUTATIONS)
    path, refused = tmp_path / "checkpoint.pth.tar", 0
    for _ in range(MUTATIONS):
        path.write_bytes(mutate(whole, draw))
        sentence = resume(path, monkeypatch)
        if sentence is None:
            assert equal(checkpoint.load(path).contents, good)
        else:
            assert str(path) in sentence
            refused += 1
    assert refused > MUTATIONS / 2


class Payload:
    """Pickles to a call that leaves a file behind."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_code_never_runs(trained, tmp_path, monkeypatch) -> None:
    """A checkpoint that would run a command is refused with the reason, in both file formats, and does not run it."""
    target = tmp_path / "ran"
    stored = checkpoint.load(trained).contents
    for new_format in (True, False):
        for where in ("arguments", "state_dict", "extra"):
            path = tmp_path / "hostile.pth.tar"
            torch.save({**stored, where: Payload(target)}, path, _use_new_zipfile_serialization=new_format)
            sentence = resume(path, monkeypatch)
            assert "it is more than data" in sentence and "system" in sentence and "weights_only" not in sentence
    assert not target.exists()


@pytest.mark.parametrize("name, value", [
    ("state_dict", {}), ("state_dict", {"classifier.weight": 3}), ("optimizer", {"state": 1}), ("optimizer", [1]),
    ("epoch", "three"), ("epoch", None), ("batch", [1]), ("batch", -1), ("iteration", {}), ("iteration", -5),
    ("history", 5), ("history", [1, 2]), ("meters", {"sums": 3}), ("meters", [4]), ("random_state", {}),
    ("random_state", {"python": [1]}),
    ("random_state", 3), ("network", 7), ("network", {"name": 1, "num_classes": "x"}),
    ("arguments", {"epochs": "many"}), ("arguments", {"leaky": [1]}), ("arguments", {"dataset": "photos"}),
    ("arguments", {"schedule": 3}),
    ("arguments", {"train_batch": -1}), ("best_acc", "high"), ("warned", 3), ("evaluated", collections.OrderedDict()),
])
def test_contents_of_wrong_kind(trained, tmp_path, monkeypatch, name, value) -> None:
    """Files that are well formed and hold nonsense give a sentence, or load where the nonsense does no harm."""
    path = tmp_path / "checkpoint.pth.tar"
    torch.save({**checkpoint.load(trained).contents, name: value}, path)
    sentence = resume(path, monkeypatch)
    assert sentence is not None or name == "evaluated"


def test_optimizer_of_another_shape(trained, tmp_path, monkeypatch) -> None:
    """It is refused when it is read, not at the first step."""
    contents = checkpoint.load(trained).contents
    contents["optimizer"]["state"][0]["momentum_buffer"] = torch.zeros(3)
    torch.save(contents, tmp_path / "file")
    assert "the optimizer's state has another shape than the weights" in resume(tmp_path / "file", monkeypatch)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_files_of_other_programs(key, tmp_path) -> None:
    """A network under another name, and an accuracy that is a number of NumPy's."""
    for kind in (np.float32, np.float64, np.int64):
        torch.save({key: {"w": torch.ones(1)}, "best_acc": kind(50)}, tmp_path / "file")
        found = checkpoint.load(tmp_path / "file").contents
        assert equal(found["state_dict"], {"w": torch.ones(1)}) and found["best_acc"] == 50


def test_files_that_cannot_be_looked_at(tmp_path, monkeypatch) -> None:
    """A name that is too long, a folder or a file without permission: not damaged, and no traceback."""
    with pytest.raises(UserError, match="cannot be read .File name too long"):
        checkpoint.load("x" * 300)
    (tmp_path / checkpoint.LAST).touch()
    for call in ("stat", "open"):
        with monkeypatch.context() as patched:  # as root may read everything
            patched.setattr(Path, call, raising(PermissionError(errno.EACCES, "Permission denied")))
            with pytest.raises(UserError, match=f"{checkpoint.LAST} cannot be read .Permission denied"):
                checkpoint.find("auto", tmp_path)


def test_the_newest_good_file(tmp_path) -> None:
    """The last one or, if that is damaged, the best one; an error where both are, and nothing where there is none."""
    last, best = tmp_path / checkpoint.LAST, tmp_path / checkpoint.BEST
    assert checkpoint.find("auto", tmp_path) is None and checkpoint.find(None, tmp_path) is None
    for path in (last, best):
        torch.save({"state_dict": {"w": torch.ones(1)}}, path)
    for damaged, found in (([], last), ([last], best)):
        for path in damaged:
            path.write_bytes(b"PK")
        assert checkpoint.find("auto", tmp_path).path == found
    best.write_bytes(b"PK")
    with pytest.raises(UserError, match=f"no checkpoint in {tmp_path} can be read"):
        checkpoint.find("auto", tmp_path)
