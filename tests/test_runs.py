"""What a run keeps, refuses and says: its folder, numbers that are not finite, metrics, exports, other wrappers."""
import errno
import json
import math
import os
import random
import resource
import signal
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import TensorDataset

import mnist_lenet
from models import LeNet, dynamics
from tests.processes import equal, same_state
from tests.small import IMAGES, LABELS, made, small, stored
from tests.test_published import as_published
from utils import checkpoint, logs, metrics, report
from utils.errors import UserError
from utils.files import FolderLock
from utils.finite import Watch, first_bad
from utils.meters import Meters
from utils.provenance import versions

SEED = ("--manualSeed", "3")
pytestmark = pytest.mark.usefixtures("unpictured")


def train(*flags: object, **changes) -> None:
    """Run a small experiment to its end."""
    small(**changes).main([*SEED, *map(str, flags)])


def sentence(*flags: object, **changes) -> str:
    """What a run ends with that ends badly."""
    with pytest.raises(SystemExit) as stopped:
        train(*flags, **changes)
    return stopped.value.code


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# Folders


@pytest.fixture
def folder(tmp_path) -> Path:
    """A run of 9 iterations, three epochs; ``early.pth.tar`` is its checkpoint after 4."""
    run = tmp_path / "run"
    train("-c", run, "--max-iters", 4, "--save-every", 2, "--epochs", 3, "--log-every", 1)
    early = (run / "checkpoint.pth.tar").read_bytes()
    train("-c", run, "--resume", "auto")
    (run / "early.pth.tar").write_bytes(early)
    return run


def test_two_runs_do_not_share_a_folder(folder) -> None:
    """The second is refused by name of folder, process and host, whatever it would do there; files stay as they are."""
    before = contents(folder)
    with FolderLock(folder, wait=False):
        for flags in ((), ("--resume", "auto"), ("--resume", folder / "early.pth.tar")):
            found = sentence("-c", folder, *flags)
            assert f"{folder} is in use by process {os.getpid()} on {os.uname().nodename}" in found
        train("--resume", folder / "checkpoint.pth.tar", "--evaluate")  # reads alone
        left = contents(folder)
        left.pop(".lock")
        assert left == before
    train("-c", folder, "--resume", "auto", "--epochs", 4)
    assert not list(folder.glob(".*"))


def test_a_file_that_changes_while_a_run_starts(folder, monkeypatch) -> None:
    """Between reading a checkpoint and having the folder another run may have gone on: it is not thrown back."""
    def replaced(args):
        (folder / "checkpoint.pth.tar").write_bytes((folder / "early.pth.tar").read_bytes())
        return small().build_data(args)

    assert "was replaced while this run was starting" in sentence("-c", folder, "--resume", "auto", build_data=replaced)


def test_the_given_folder_wins(folder, tmp_path, capsys) -> None:
    """``--resume FILE -c OTHER`` writes to OTHER alone, which is whole at once: log, best network, metrics."""
    before, other = contents(folder), tmp_path / "other"
    train("-c", other, "--epochs", 1)
    train("-c", other, "--resume", folder / "checkpoint.pth.tar", "--max-iters", 9)
    assert f"files in {other} of another run are kept in {other / 'previous-1'}" in capsys.readouterr().out
    assert stored(other / "previous-1")["iteration"] == 3
    same_state(folder, other)
    assert contents(other)["model_best.pth.tar"] == before["model_best.pth.tar"]
    assert metrics.read(other) == metrics.read(folder)
    train("-c", other, "--resume", "auto", "--epochs", 4)
    assert contents(folder) == before and stored(other)["iteration"] == 12


def test_an_older_file_sets_newer_ones_aside(folder, capsys) -> None:
    """Nothing of what came later is lost, rows of the log and metrics included, and the way is taken again."""
    last, rows = contents(folder), metrics.read(folder)
    train("--resume", folder / "early.pth.tar", "--max-iters", 4)
    kept = folder / "previous-1"
    assert f"files in {folder} later than iteration 4 are kept in {kept}" in capsys.readouterr().out
    assert {**contents(kept), "early.pth.tar": last["early.pth.tar"]} == last
    assert stored(folder)["iteration"] == 4 and len(logs.read_log(folder)) == 1
    assert metrics.read(folder) == [row for row in rows if row["iteration"] <= 4]
    train("-c", folder, "--resume", "auto")
    same_state(folder, kept)
    assert stored(folder, "model_best.pth.tar")["best_acc"] == stored(kept)["best_acc"]
    assert not (folder / "previous-2").exists()


def test_the_best_on_a_few_samples_is_not_the_best_on_all(tmp_path, capsys) -> None:
    """It goes aside, the next evaluation is the best; not where nothing is left to do, or the number is not known."""
    limited = ("-c", tmp_path, "--epochs", 1, "--lr", 1e-9)
    train(*limited, "--test-limit", 2)
    stored_best = {**stored(tmp_path), "best_acc": 100.0}
    for name in (checkpoint.LAST, checkpoint.BEST):
        torch.save(stored_best, tmp_path / name)
    train(*limited, "--resume", "auto")
    assert stored(tmp_path)["best_acc"] == 100 and not (tmp_path / "previous-1").exists()
    train(*limited, "--resume", "auto", "--epochs", 2)
    assert "the best network so far is of 2 test samples" in capsys.readouterr().out
    assert stored(tmp_path / "previous-1", checkpoint.BEST)["best_acc"] == 100
    best = stored(tmp_path, checkpoint.BEST)
    assert (best["epoch"], best["best_of"]) == (2, 24) and best["best_acc"] == stored(tmp_path)["best_acc"] < 100
    old = {name: value for name, value in stored(tmp_path).items() if name != "best_of"} | {"best_acc": 99.0}
    torch.save(old, tmp_path / checkpoint.LAST)
    train(*limited, "--resume", "auto", "--epochs", 3, "--test-limit", 2)
    assert stored(tmp_path)["best_acc"] == 99 and stored(tmp_path)["best_of"] == 0


def test_restarting_at_an_epoch_loses_nothing(folder) -> None:
    """``--start-epoch`` throws back as an older file does."""
    last = contents(folder)
    train("--resume", folder / "checkpoint.pth.tar", "--start-epoch", 1, "--max-iters", 4)
    kept = contents(folder / "previous-1")
    assert {name: kept[name] for name in ("checkpoint.pth.tar", "log.txt", "metrics.jsonl")} == {
        name: last[name] for name in ("checkpoint.pth.tar", "log.txt", "metrics.jsonl")}
    assert stored(folder)["iteration"] == 4 and len(logs.read_log(folder)) == 2


def test_rows_of_a_log_without_its_checkpoint_are_kept(folder) -> None:
    """The last checkpoint is gone or damaged, and the best one is older: the log goes aside with it."""
    for damage in (lambda path: path.unlink(), lambda path: path.write_bytes(b"PK")):
        (folder / "model_best.pth.tar").write_bytes((folder / "early.pth.tar").read_bytes())
        log = (folder / "log.txt").read_bytes()
        damage(folder / "checkpoint.pth.tar")
        train("-c", folder, "--resume", "auto")
        newest = max(folder.glob("previous-*"), key=lambda path: path.name)
        assert (newest / "log.txt").read_bytes() == log
    assert len(list(folder.glob("previous-*"))) == 2


def test_a_fresh_run_says_where_the_old_one_is(folder, capsys) -> None:
    before = contents(folder)
    train("-c", folder, "--max-iters", 1)
    assert f"files in {folder} of an earlier run are kept in {folder / 'previous-1'}" in capsys.readouterr().out
    assert {**contents(folder / "previous-1"), "early.pth.tar": before["early.pth.tar"]} == before


def test_a_report_is_written_to_a_folder_that_is_held(folder, monkeypatch) -> None:
    """At the end of a training and of an evaluation, which is refused at once where a run goes on; not by a dry run."""
    written = []

    def write(model, inputs, targets, target, **settings) -> None:
        with pytest.raises(UserError, match=f"{folder} is in use by process {os.getpid()}"):
            FolderLock(folder, wait=False).__enter__()
        count = settings["samples"]
        places = [(IMAGES == image).flatten(1).all(1).nonzero().item() for image in inputs]
        assert sorted(places) == [place * len(IMAGES) // count for place in range(count)] != places
        assert torch.equal(targets, LABELS[places])
        assert settings == {"samples": count, "scale_factor": 100.0, "batch": 8} and target == folder / "report"
        written.append(count)

    monkeypatch.setattr(report, "write", write)
    last = folder / "checkpoint.pth.tar"
    train("-c", folder, "--resume", "auto", "--epochs", 4, "--report")
    train("--resume", last, "--evaluate", "--report", "--report-samples", 5)
    train("--resume", last, "--dry-run", "--report")
    assert written == [24, 5] and not list(folder.glob(".*"))  # all that there are, or as many as asked for
    with FolderLock(folder, wait=False):
        assert f"{folder} is in use" in sentence("--resume", last, "--evaluate", "--report")
    assert len(written) == 2


def test_a_disk_that_is_full_when_a_run_starts(folder, monkeypatch) -> None:
    """One sentence, and no part of a file under a name that looks good."""
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # as of write and fsync, which name no file

    before, last = contents(folder), folder / "checkpoint.pth.tar"
    monkeypatch.setattr(os, "fsync", full)
    for flags in (("-c", folder / "new"), ("--resume", last), ("--resume", folder / "early.pth.tar"),
                  ("--resume", last, "--export", folder / "network.pth.tar"), ("--resume", last, "-c", folder / "new")):
        assert "cannot be used (No space left on device)" in sentence(*flags)
    assert contents(folder) == before and not contents(folder / "previous-1") and not contents(folder / "new")


def test_files_of_a_run_that_are_something_else(folder) -> None:
    last = folder / "checkpoint.pth.tar"
    for name, make, flags in (("report", Path.touch, ("--evaluate", "--report")), ("metrics.jsonl", Path.mkdir, ()),
                              ("log.txt", Path.mkdir, ())):
        (folder / name).unlink(missing_ok=True)
        make(folder / name)
        assert f"{folder / name} cannot be used" in sentence("--resume", last, *flags)


# Numbers that are not finite


def spoilt(index: int) -> TensorDataset:
    """Data with one pixel that is not a number."""
    images = IMAGES.clone()
    images[index, 0, 3, 4] = math.nan
    return TensorDataset(images, LABELS)


@pytest.mark.parametrize("workers", [0, 1])
def test_input_that_is_not_finite(folder, workers: int) -> None:
    """One pixel of one image: the sample is named, and the last good checkpoint stays."""
    before = contents(folder)["checkpoint.pth.tar"]
    flags = ("-c", folder, "--resume", "auto", "--epochs", 9, "-j", workers)
    good, bad = TensorDataset(IMAGES, LABELS), spoilt(17)
    found = sentence(*flags, "--save-every", 1, build_data=lambda args: (bad, good, None))
    assert "sample 17 of the training data holds numbers that are not finite" in found
    assert checkpoint.load(folder / "checkpoint.pth.tar").contents["epoch"] == 3
    found = sentence("--resume", folder / "checkpoint.pth.tar", "-e", build_data=lambda args: (good, bad, None))
    assert "sample 17 of the test data holds numbers that are not finite" in found
    (folder / "checkpoint.pth.tar").write_bytes(before)


def built(change):
    """A ``build_model`` whose network is changed."""
    def build_model(args):
        model = small().build_model(args)
        change(model)
        return model

    return build_model


def test_gradient_that_is_not_finite(folder) -> None:
    """It is named with its iteration before the step counts as done, and the checkpoint of before stays."""
    before, calls = contents(folder)["checkpoint.pth.tar"], []

    def overflow(gradient):
        calls.append(1)
        return gradient * (math.inf if len(calls) == 2 else 1)

    build_model = built(lambda model: model.classifier.weight.register_hook(overflow))
    found = sentence("-c", folder, "--resume", "auto", "--epochs", 9, "--save-every", 7, build_model=build_model)
    assert "the gradient of classifier.weight is not finite at iteration 11" in found
    assert contents(folder)["checkpoint.pth.tar"] == before


def test_gradient_that_overflows_between_loss_and_network(folder) -> None:
    """The loss is finite, and every gradient that a parameter has: what the network refuses ends a run as those do."""
    def overflow(module, inputs):
        if inputs[0].requires_grad:
            inputs[0].register_hook(lambda gradient: gradient * math.inf)

    before = contents(folder)["checkpoint.pth.tar"]
    build_model = built(lambda model: model.classifier.register_forward_pre_hook(overflow))
    found = sentence("-c", folder, "--resume", "auto", "--epochs", 9, build_model=build_model)
    assert "the gradient of the loss for the firing rates holds numbers that are not finite" in found
    assert f" at iteration 10: resume from the last checkpoint in {folder} with a smaller --lr" in found
    assert contents(folder)["checkpoint.pth.tar"] == before


@pytest.mark.parametrize("flags, words", [
    (("--lr", 1e38), "the loss is not finite at iteration 11"),
    (("--scale_factor", 1e39, "--override"), "the loss is not finite at iteration 10"),
    (("--weight-decay", 1e38, "--lr", 1e5), "the weight network.input.weight is not finite at iteration 10")])
def test_numbers_that_overflow_in_training(folder, flags, words: str) -> None:
    """By flags that go too far: a sentence that names what and when, and the checkpoint of before."""
    before = contents(folder)["checkpoint.pth.tar"]
    found = sentence("-c", folder, "--resume", "auto", "--epochs", 9, "--save-every", 99, *flags)
    assert words in found and "smaller --lr" in found
    assert contents(folder)["checkpoint.pth.tar"] == before


def test_state_that_is_not_finite_is_not_saved(folder) -> None:
    """Momentum is neither a weight nor a gradient; a good checkpoint is not replaced by it."""
    before = contents(folder)["checkpoint.pth.tar"]

    def spoil(optimizer, *_):
        optimizer.state[optimizer.param_groups[0]["params"][0]]["momentum_buffer"][0] = math.nan

    hook = register_optimizer_step_post_hook(spoil)
    try:
        found = sentence("-c", folder, "--resume", "auto", "--epochs", 9, "--save-every", 1)
    finally:
        hook.remove()
    assert "optimizer" in found and "momentum_buffer is not finite after iteration 10, which is not saved" in found
    assert contents(folder)["checkpoint.pth.tar"] == before


def test_weights_that_are_not_finite_are_not_loaded(folder) -> None:
    """The parameter is named, and the file."""
    state = stored(folder)
    state["state_dict"]["network.layers.1.weight"][0, 0, 0, 0] = math.inf
    torch.save(state, folder / "bad.pth.tar")
    for flags in (("--evaluate",), ("--epochs", 9), ("--new-readout",), ("--export", folder / "out")):
        found = sentence("--resume", folder / "bad.pth.tar", *flags)
        assert f"{folder / 'bad.pth.tar'} holds numbers that are not finite in network.layers.1.weight" in found
    assert not (folder / "out").exists()


def test_test_loss_that_is_not_finite(folder) -> None:
    """Weights are finite, but what comes out is not."""
    state = stored(folder)
    state["state_dict"]["classifier.bias"][:] = torch.tensor([3e38, -3e38, 0])
    torch.save(state, folder / "bad.pth.tar")
    found = sentence("--resume", folder / "bad.pth.tar", "--evaluate")
    assert "the loss on the test data is not finite after iteration 9" in found


def test_watch() -> None:
    """First iteration and name, however much later one looks; large numbers are finite."""
    model = torch.nn.Linear(2, 2)
    watch, names = Watch(model), []
    for iteration in range(1, 6):
        model.weight.grad = torch.full((2, 2), 3e38)
        model.bias.grad = torch.full((2,), math.nan if iteration in (3, 5) else 0.0)
        watch.see_loss(torch.tensor(math.inf if iteration == 4 else 1.0), iteration)
        watch.see_parameters(iteration)
        names.append(watch.first())
    assert names == [None, None, *[(3, "gradient of bias")] * 3]
    with torch.no_grad():
        model.weight[1, 0] = -math.inf
    watch = Watch(model)
    model.zero_grad(set_to_none=True)
    watch.see_parameters(7)
    assert watch.first() in [(7, "gradient of weight"), (7, "weight weight")]
    model.empty = torch.nn.Parameter(torch.empty(0))
    Watch(model).see_parameters(8)  # of no numbers there are none that are not finite
    assert first_bad({"a": [torch.ones(2)], "b": {"c": torch.tensor(math.nan)}}) == "b.c"


# Random generators


class Noisy(LeNet):
    """A network that draws from every generator there is."""

    def forward(self, x, statistics=None, *, keys=None):
        if self.training:
            x = x + torch.rand(()) + np.random.rand() + random.random()  # noqa: NPY002
        return super().forward(x.float(), statistics, keys=keys)


def test_generators_go_on_where_they_stood(tmp_path) -> None:
    """torch's, NumPy's and Python's, bit for bit, in the middle of an epoch and in another process state."""
    def build_model(args):
        return Noisy(widths=(2, 3, 8), image_size=8, num_classes=3, dropout=0.5, **dynamics.of(args))

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train("-c", whole, build_model=build_model)
    train("-c", parts, "--max-iters", 2, build_model=build_model)
    first = stored(parts)["random_state"]
    for scramble in (lambda: torch.manual_seed(99), lambda: np.random.seed(99), lambda: random.seed(99)):
        scramble()
    train("-c", parts, "--resume", "auto", build_model=build_model)
    same_state(whole, parts)
    last = stored(parts)["random_state"]
    assert equal(last, stored(whole)["random_state"])
    assert not any(equal(first[name], last[name]) for name in ("torch", "numpy", "python"))


# Metrics


def test_a_row_every_so_many_iterations(tmp_path) -> None:
    """Rows of two iterations each, over epochs of 3, and one for each evaluation; their means are the log's."""
    train("-c", tmp_path, "--log-every", 2, "--warmup", 10)
    rows = metrics.read(tmp_path)
    assert [(row["phase"], row["iteration"], row["epoch"]) for row in rows] == [
        ("train", 2, 1), ("test", 3, 1), ("train", 4, 2), ("train", 6, 2), ("test", 6, 2)]
    training = [row for row in rows if row["phase"] == "train"]
    for row in training:
        assert {"loss", "top1", "top5", "saturated", "seconds"} <= row.keys() and row["seconds"] > 0
        assert len(row["forward_rates"]) == len(row["backward_rates"]) == 5
        assert row["learning_rate"] == pytest.approx(0.1 * row["iteration"] / 10)
    log = logs.read_log(tmp_path)
    assert sum(row["loss"] for row in training) / 3 == pytest.approx((log[0][1] + log[1][1]) / 2, abs=2e-6)
    assert [row["loss"] for row in rows if row["phase"] == "test"] == pytest.approx([r[2] for r in log], abs=1e-6)
    assert "backward_rates" not in rows[1]


def test_metrics_of_ide(tmp_path, monkeypatch) -> None:
    """Sweeps and residual in place of backward spikes, and a picture all the same."""
    monkeypatch.undo()
    train("-c", tmp_path, "--log-every", 1, "--method", "ide", "--epochs", 1)
    row = metrics.read(tmp_path)[0]
    assert row["sweeps"] >= 1 and row["residual"] >= 0 and "backward_rates" not in row and "saturated" not in row
    assert math.isnan(logs.read_log(tmp_path)[0][6]) and (tmp_path / "log.png").stat().st_size > 1000


def test_another_method_within_an_epoch(tmp_path, capsys) -> None:
    """Each has quantities of its own, whose means begin with it."""
    train("-c", tmp_path, "--max-iters", 1, "--log-every", 2)
    for method, count in (("ide", 2), ("spide", 3)):
        train("-c", tmp_path, "--resume", "auto", "--method", method, "--override", "--max-iters", count)
        assert "means over the running epoch begin anew" in capsys.readouterr().out
    rows = [row for row in metrics.read(tmp_path) if row["phase"] == "train"]
    assert ["sweeps" in row for row in rows] == [True] and "backward_rates" not in rows[0]


def test_metrics_change_no_bit(tmp_path) -> None:
    for every in (0, 1, 4):
        train("-c", tmp_path / str(every), "--log-every", every)
    same_state(tmp_path / "0", tmp_path / "1")
    same_state(tmp_path / "0", tmp_path / "4")
    assert [row["phase"] for row in metrics.read(tmp_path / "0")] == ["test", "test"]


def without_seconds(folder: Path) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in metrics.read(folder)]


def test_rows_are_neither_double_nor_torn(tmp_path) -> None:
    """Interrupted in the middle of a row's iterations, with rows beyond the checkpoint and half a row at the end."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train("-c", whole, "--log-every", 2, "--epochs", 3)
    train("-c", parts, "--log-every", 2, "--epochs", 3, "--max-iters", 5)
    file = parts / "metrics.jsonl"
    later = json.dumps(metrics.read(parts)[0] | {"epoch": 2, "iteration": 6}).encode()
    file.write_bytes(file.read_bytes() + later + b"\n" + later[:20])
    train("-c", parts, "--resume", "auto")
    found = without_seconds(parts)
    assert found.pop(3)["iteration"] == 5  # the evaluation that --max-iters brought
    assert [list(row.items()) for row in found] == [list(row.items()) for row in without_seconds(whole)]


def test_lines_that_are_no_rows_do_not_stop_a_run(tmp_path, capsys) -> None:
    """They are left out with a warning, and nothing that comes after them; rows of one's own stay."""
    train("-c", tmp_path, "--log-every", 1, "--max-iters", 4)
    file = tmp_path / "metrics.jsonl"
    first, *others = file.read_bytes().splitlines(keepends=True)
    own = b'{"iteration": 1, "phase": "mine", "own": 3}\n'
    file.write_bytes(first + own + first[:30] + b"\n" + b"".join(others))
    train("-c", tmp_path, "--log-every", 1, "--resume", "auto")
    assert f"warning: {file}, line 3, is no row of metrics, and is left out" in capsys.readouterr().out
    assert file.read_bytes().startswith(first + own + b"".join(others))


def test_rows_that_cannot_be_written(tmp_path, monkeypatch, capsys) -> None:
    """A warning; they are written whole once that is possible."""
    append, fail = metrics.append, [True, True, False]

    def full(folder, rows, **settings):
        if fail and fail.pop(0):
            raise OSError(28, "No space left on device")
        append(folder, rows, **settings)

    monkeypatch.setattr(metrics, "append", full)
    train("-c", tmp_path, "--log-every", 1)
    assert "rows could NOT be written" in capsys.readouterr().out
    assert [row["iteration"] for row in metrics.read(tmp_path)] == [1, 2, 3, 3, 4, 5, 6, 6]


def test_half_a_row_is_taken_back(tmp_path, monkeypatch) -> None:
    """A disk that fills in the middle of a row leaves the file as it was."""
    metrics.append(tmp_path, [{"iteration": 1}], lasting=False)
    before = contents(tmp_path)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        metrics.append(tmp_path, [{"iteration": 2, "loss": math.nan}], lasting=True)
    assert contents(tmp_path) == before


# Pictures


def test_a_picture_never_ends_a_training(tmp_path, monkeypatch, capsys) -> None:
    """Whatever goes wrong while drawing is a warning, and nothing else is lost."""
    def broken(*_):
        raise MemoryError("no font")

    monkeypatch.setattr(logs, "_draw", broken)
    train("-c", tmp_path)
    out = capsys.readouterr().out
    assert "log.png could not be drawn (MemoryError: no font)" in out and "finished after 2 epochs" in out
    assert len(logs.read_log(tmp_path)) == 2 and stored(tmp_path)["epoch"] == 2


# Exports, fine-tuning, other wrappers


def test_export(folder, capsys) -> None:
    """The network alone, with what it is: it evaluates alike, is smaller, and can be trained on."""
    file = folder / "new" / "network.pth.tar"
    train("--resume", folder / "model_best.pth.tar", "--export", file)
    assert f"{file} holds the LeNet of" in capsys.readouterr().out
    found = torch.load(file, weights_only=True)
    assert "optimizer" not in found and "random_state" not in found
    best = stored(folder, "model_best.pth.tar")
    assert all(found[name] == best[name] for name in ("epoch", "iteration", "best_acc"))
    assert found["arguments"]["manualSeed"] == 3 and found["versions"] == versions()
    assert equal(found["state_dict"], best["state_dict"])
    assert file.stat().st_size < 0.7 * (folder / "model_best.pth.tar").stat().st_size
    outputs = []
    for resumed in (folder / "model_best.pth.tar", file):
        train("--resume", resumed, "--evaluate")
        outputs.append(capsys.readouterr().out.splitlines()[-1])
    assert outputs[0] == outputs[1] and outputs[0].startswith("test: loss")
    train("--resume", file, "--epochs", 9, "-c", folder / "on", "--max-iters", found["iteration"] + 1)
    assert "no state of SGD to go on from" in capsys.readouterr().out


def test_an_export_replaces_nothing_but_exports(folder, tmp_path) -> None:
    """Neither the run's own checkpoint, with all that is needed to go on, nor a file of any other kind."""
    for name in ("model_best.pth.tar", "checkpoint.pth.tar"):
        train("--resume", folder / name, "--export", tmp_path / "network.pth.tar")
    before = contents(folder)
    for name in before:
        assert f"{folder / name} is there already" in sentence(
            "--resume", folder / "checkpoint.pth.tar", "--export", folder / name)
    assert contents(folder) == before


def test_a_new_readout(folder, tmp_path, capsys) -> None:
    """Fine-tuning: the network of a file, a readout for other classes, and a run of its own from the start."""
    def build_model(args):
        return LeNet(widths=(2, 3, 8), image_size=8, num_classes=5, dropout=args.drop, **dynamics.of(args))

    changes = {"build_model": build_model, "defaults": {**small().defaults, "epochs": 1, "time_step": 9}}
    file, other = folder / "checkpoint.pth.tar", tmp_path / "other"
    assert "LeNet with 3 classes, but this run builds a LeNet with 5 classes" in sentence("--resume", file, **changes)
    train("-d", "louder", "--resume", file, "--new-readout", "-c", other, "--max-iters", 0 + 1, "--lr", 1e-9, **changes)
    new, old = stored(other), stored(folder)
    assert (new["iteration"], new["arguments"]["dataset"], new["arguments"]["epochs"]) == (1, "louder", 1)
    assert new["arguments"]["time_step"] == 4  # what the network is comes from the file
    assert new["state_dict"]["classifier.weight"].shape[0] == 5
    assert torch.allclose(new["state_dict"]["network.input.weight"], old["state_dict"]["network.input.weight"])
    for flags in (("--resume", "auto"), (), ("--resume", file, "--evaluate")):
        assert "--new-readout" in sentence("--new-readout", *flags)
    train("-c", other, "--resume", "auto", "--epochs", 2, **changes)
    assert stored(other)["iteration"] == 6


@pytest.mark.parametrize("wrap", [
    lambda state: {f"module.{name}": value for name, value in state.items()},
    lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
    lambda state: {f"module._orig_mod.module.{name}": value for name, value in state.items()},
    lambda state: {name.replace("network.", "network._orig_mod."): value for name, value in state.items()},
    lambda state: {f"model.net.{name}": value for name, value in state.items()},
    lambda state: {"n_averaged": torch.tensor(3), **{f"module.{name}": value for name, value in state.items()}}])
@pytest.mark.parametrize("hold", [lambda state: state, lambda state: {"model_state_dict": state},
                                  lambda state: {"state_dict": state, "epoch": 1}])
def test_weights_that_were_wrapped(folder, wrap, hold, capsys) -> None:
    """DataParallel, torch.compile, both, of a part, a module around it, an average; a file of nothing else."""
    file = folder / "wrapped.pth.tar"
    torch.save(hold(wrap(stored(folder)["state_dict"])), file)
    lines = []
    for resumed in (folder / "checkpoint.pth.tar", file):
        train("--resume", resumed, "--evaluate")
        lines.append(capsys.readouterr().out.splitlines()[-1])
    assert lines[0] == lines[1]


def test_a_network_that_is_wrapped_now(folder, tmp_path, capsys) -> None:
    """The other way round: a compiled network takes the weights of a plain one, and what it saves is taken back."""
    compiled = built(lambda model: setattr(model, "network", torch.compile(model.network, backend="eager")))
    train("--resume", folder / "checkpoint.pth.tar", "-c", tmp_path / "compiled", "--epochs", 4, build_model=compiled)
    assert any("_orig_mod" in name for name in stored(tmp_path / "compiled")["state_dict"])
    train("--resume", tmp_path / "compiled" / "checkpoint.pth.tar", "--max-iters", 13, "--epochs", 9)
    assert stored(tmp_path / "compiled")["iteration"] == 13


def test_weights_of_something_else_are_named(folder) -> None:
    """A prefix does not excuse a parameter too few or too many."""
    state = {f"module.{name}": value for name, value in stored(folder)["state_dict"].items()}
    for change, name in ((lambda s: s.pop("module.classifier.bias"), "classifier.bias"),
                         (lambda s: s.update({"module.extra": torch.ones(2)}), "extra")):
        other = dict(state)
        change(other)
        torch.save({"state_dict": other}, folder / "other.pth.tar")
        assert f"does not fit the LeNet of this run: {name} has shape" in sentence(
            "--resume", folder / "other.pth.tar", "-e")


def test_flags_of_the_optimizer_count_when_resumed(folder) -> None:
    """Not what the checkpoint's optimizer was made with."""
    train("-c", folder, "--resume", "auto", "--epochs", 4, "--weight-decay", 0.25, "--momentum", 0.5, "--gamma", 0.5,
          "--schedule", 1)
    group = stored(folder)["optimizer"]["param_groups"][0]
    assert (group["weight_decay"], group["momentum"], group["lr"]) == (0.25, 0.5, 0.1 * 0.5 / 100)


# Words


def test_adam_is_told_of_its_learning_rate(tmp_path, capsys) -> None:
    """Once, with the rate in effect; SGD hears nothing, and --help has it."""
    train("-c", tmp_path, "--optimizer", "Adam", "--max-iters", 1)
    out = capsys.readouterr().out
    assert out.count("it is 0.001 in effect; --lr 10 would make it 0.1") == 1
    train("-c", tmp_path, "--max-iters", 1)
    assert "in effect" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        small().main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Adam does not see" in shown
    assert "samples in a training batch (default: 8)" in shown and "default: False" not in shown


def test_home_is_expanded(monkeypatch, tmp_path) -> None:
    """In every flag that takes a path, however it is joined to it, once."""
    monkeypatch.setenv("HOME", str(tmp_path))
    train("-c", "~/run", "--max-iters", 1)
    assert stored(tmp_path / "run")["iteration"] == 1
    train("--resume=~/run/checkpoint.pth.tar", "--export=~/out.pth.tar")
    assert (tmp_path / "out.pth.tar").exists()
    assert mnist_lenet.EXPERIMENT.arguments(["--path=~/data"]).path == str(tmp_path / "data")
    from dvs_cifar_convnetf import EXPERIMENT
    assert EXPERIMENT.arguments(["--frames-path", "~/~"]).frames_path == str(tmp_path / "~")


def test_a_published_checkpoint_goes_on(tmp_path, capsys) -> None:
    """With its weights, epoch and the history in the log beside it, in its folder or in another; or exported."""
    torch.manual_seed(5)
    model = small().build_model(small().arguments())
    folder = tmp_path / "theirs"
    folder.mkdir()
    torch.save(as_published("lenet", model), folder / "checkpoint.pth.tar")
    rows = [[0.1, 2.3, 2.2, 30.0, 40.0 + epoch, 0.05, 0.01, 0.05] for epoch in range(3)]
    logs.write_log(folder, rows)
    file = folder / "checkpoint.pth.tar"
    train("--resume", file, "--export", tmp_path / "network.pth.tar")
    exported = torch.load(tmp_path / "network.pth.tar", weights_only=True)
    assert equal(exported["state_dict"], dict(model.state_dict())) and exported["epoch"] == 3
    for target in (tmp_path / "ours", folder):
        train("-c", target, "--resume", file, "--epochs", 4, "--lr", 1e-9)
        assert "after epoch 3, iteration 9" in capsys.readouterr().out
        new = stored(target)
        assert (new["epoch"], new["iteration"]) == (4, 12)
        assert new["history"][:3] == rows and logs.read_log(target)[:3] == rows and len(logs.read_log(target)) == 4
        torch.testing.assert_close(new["state_dict"]["network.input.weight"], model.network.input.weight.detach())
    assert stored(folder)["best_acc"] == 50.0
    assert stored(tmp_path / "ours", "model_best.pth.tar")["best_acc"] == stored(tmp_path / "ours")["best_acc"] < 50.0


# Found by trying what users do


def test_a_copy_without_the_best_network_makes_a_new_best(folder, tmp_path, capsys) -> None:
    """A checkpoint that was copied alone, linked to, or exported: the best network that it tells of is not there."""
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "copy.pth.tar").write_bytes((folder / "checkpoint.pth.tar").read_bytes())
    train("--resume", alone / "copy.pth.tar", "--epochs", 4, "--lr", 1e-9)
    assert "the best network up to this iteration is not in" in capsys.readouterr().out
    assert stored(alone, "model_best.pth.tar")["best_acc"] == stored(alone)["best_acc"]
    (tmp_path / "latest").symlink_to(folder / "checkpoint.pth.tar")
    before = sorted(path.name for path in tmp_path.iterdir())
    train("--resume", tmp_path / "latest", "--epochs", 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == before and stored(folder)["epoch"] == 4
    assert "is not in" not in capsys.readouterr().out


def test_a_report_goes_with_its_run(folder) -> None:
    """What described the network of before is set aside with it."""
    (folder / "report").mkdir()
    (folder / "report" / "report.md").write_text("of another network")
    train("-c", folder, "--epochs", 1)
    assert not (folder / "report").exists() and (folder / "previous-1" / "report" / "report.md").is_file()


def test_a_run_that_is_over_keeps_its_arguments(folder) -> None:
    """Nothing was trained with the flags of an invocation that found nothing to do."""
    before = (folder / "args.json").read_bytes()
    train("-c", folder, "--resume", "auto", "--lr", 5, "--epochs", 3)
    assert (folder / "args.json").read_bytes() == before
    train("-c", folder, "--resume", "auto", "--lr", 1e-3, "--epochs", 4)
    assert json.loads((folder / "args.json").read_text())["arguments"]["lr"] == 1e-3


def test_folders_that_are_not_one_runs(folder, tmp_path, monkeypatch) -> None:
    """Where checkpoints of many lie, none goes on in place; evaluating there writes nothing."""
    monkeypatch.chdir(tmp_path)
    Path("checkpoints").mkdir()
    train("--resume", folder / "checkpoint.pth.tar", "--export", "checkpoints/net.pth.tar")
    assert "is no folder of one run's own" in sentence("--resume", "checkpoints/net.pth.tar", "--epochs", 9)
    assert "is no folder of one run's own" in sentence("-c", tmp_path / "checkpoints")
    train("--resume", "checkpoints/net.pth.tar", "--evaluate")
    assert [path.name for path in Path("checkpoints").iterdir()] == ["net.pth.tar"]
    assert "--start-epoch is of training" in sentence("--resume", "checkpoints/net.pth.tar", "-e", "--start-epoch", 1)


def test_logs_that_are_empty_or_short_are_made_whole(folder) -> None:
    """The checkpoint holds the history, whatever became of the file."""
    whole = (folder / "log.txt").read_text()
    for damaged in ("", whole.splitlines()[0] + "\n"):
        (folder / "log.txt").write_text(damaged)
        train("-c", folder, "--resume", "auto")
        assert (folder / "log.txt").read_text() == whole


def test_another_batch_size_trains_no_sample_of_a_whole_epoch_again(tmp_path, capsys) -> None:
    """Nor does an epoch of which only the evaluation is missing train a part of it anew; otherwise it is said."""
    train("-c", tmp_path, "--epochs", 1, "--train-batch", 7, "--max-iters", 2)
    train("-c", tmp_path, "--resume", "auto", "--train-batch", 8, "--override")
    assert stored(tmp_path)["iteration"] == 2 + 2 and "6 samples of the running epoch come again" in (
        capsys.readouterr().out)
    for batch, size, place in ((3, 10, 3), (3, 5, 5), (2, 5, 3), (2, 4, 4)):  # batches of 8 done, then place in others
        run = made(tmp_path, "--train-batch", size)
        run.load_state_dict({**stored(tmp_path), "epoch": 0, "batch": batch}, tmp_path)
        assert run.state.batch == place


def test_rows_that_no_room_was_left_for_are_written_once(tmp_path) -> None:
    """A file that may grow no more stays as it was, as much as a file system takes of a row."""
    rows = [{"iteration": number, "text": "x" * 90} for number in range(60)]
    metrics.append(tmp_path, rows[:1], lasting=False)
    before = contents(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        with pytest.raises(OSError):
            metrics.append(tmp_path, rows[1:], lasting=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert contents(tmp_path) == before


def test_processes_ask_for_the_same_sums_whatever_fails(tmp_path) -> None:
    """Each asks for those of every row once: one more, after a failure of the leader's disk, would wait for ever."""
    asked = {True: 0, False: 0}
    sums = {name: torch.ones(()) for name in ("samples", "loss", "top1", "top5")}
    for leads in asked:
        pending = metrics.PendingRows(tmp_path / "folder", (tmp_path / "folder").mkdir)
        (tmp_path / "folder").unlink(missing_ok=True)
        (tmp_path / "folder").touch()  # a file, where no folder can be made
        for number in (1, 2):
            pending.note({"phase": "train", "iteration": number}, Meters({"sums": sums, "neurons": [1]}))

            def merged(meters, leads=leads):
                asked[leads] += 1
                return meters

            with pytest.raises(OSError) if leads and number == 1 else nullcontext():
                pending.write(merged, leads=leads, lasting=False)
            if (tmp_path / "folder").is_file():
                (tmp_path / "folder").unlink()
        if leads:
            rows = (tmp_path / "folder" / metrics.NAME).read_text().splitlines()
            assert [json.loads(row)["iteration"] for row in rows] == [1, 2]
            (tmp_path / "folder" / metrics.NAME).unlink()
            (tmp_path / "folder").rmdir()
    assert asked == {True: 2, False: 2}


def test_a_folder_that_may_not_be_written_to_any_more_can_be_left(tmp_path, monkeypatch) -> None:
    """So that what a run ends with is heard, and not that its lock could not be removed."""
    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    with FolderLock(tmp_path):
        monkeypatch.setattr(Path, "unlink", refused)


@pytest.mark.parametrize("changes, words", [
    ({"arguments": {"lr": None}}, "holds None for --lr"),
    ({"arguments": {"workers": None}}, "holds None for --workers"),
    ({"epoch": math.inf}, "OverflowError"), ({"best_acc": math.nan}, "nan is not at least -1"),
    ({"history": [["a"] * 8]}, "could not convert string")])
def test_values_that_no_run_can_have(folder, changes, words) -> None:
    """They are refused with the name of the file, not as a fault of the script or of the loop."""
    whole = stored(folder)
    changes = {**changes, "arguments": {**whole["arguments"], **changes.get("arguments", {})}}
    torch.save({**whole, **changes}, folder / "checkpoint.pth.tar")
    found = sentence("--resume", folder / "checkpoint.pth.tar", "--epochs", 4)
    assert words in found and "checkpoint.pth.tar" in found


def test_weights_that_the_network_cannot_hold(folder, tmp_path) -> None:
    """Nor are they exported, or tuned; what is no network is no traceback there either."""
    whole = stored(folder)
    name, huge = next(iter(whole["state_dict"].items()))
    for state, words in (({**whole["state_dict"], name: huge.double() * 1e200}, "numbers that are not finite"),
                         ({"network_x.conv.weight": 3}, "does not hold the state of a run")):
        torch.save({**whole, "state_dict": state}, tmp_path / "odd.pth.tar")
        for way in (["--evaluate"], ["--export", tmp_path / "net.pth.tar"], ["--new-readout", "-c", tmp_path / "new"]):
            assert words in sentence("--resume", tmp_path / "odd.pth.tar", *way)
    assert not (tmp_path / "net.pth.tar").exists()


def test_defaults_of_a_data_set_are_of_that_alone(tmp_path) -> None:
    """Those of the script's own data set do not stay where a checkpoint names another one."""
    changes = {"dataset_defaults": {"noise": {"max_iters": 1}, "louder": {"noise_level": 2.0}}}
    train("-c", tmp_path, "-d", "louder", "--epochs", 1, **changes)
    train("--resume", tmp_path / "checkpoint.pth.tar", "--epochs", 2, **changes)
    assert stored(tmp_path)["iteration"] == 6


def test_a_dry_run_looks_at_labels_too(tmp_path) -> None:
    """As training would; and data without samples are refused before anything runs."""
    for labels, words in ((LABELS + 5, "labels from 5 to 7"), (LABELS[:0], "there are no training samples")):
        data = TensorDataset(IMAGES[:len(labels)], labels)
        assert words in sentence("-c", tmp_path, "--dry-run", build_data=lambda args, data=data: (data, data, None))
