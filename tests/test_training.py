"""The loop against a plain one, and what a resumed run takes over: small things that no other test would miss."""
import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

from tests.small import IMAGES, LABELS, made, small, stored
from tests.test_runs import built, sentence, train
from utils import checkpoint, logs, metrics, progress, training
from utils.cli import Arguments, Invocation
from utils.distributed import World
from utils.experiment import agreed, make_optimizer, summary
from utils.files import write_atomically
from utils.folder import arrange
from utils.loading import Batches
from utils.logs import read_log, write_log
from utils.run import RunState

pytestmark = pytest.mark.usefixtures("unpictured")


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_plain_loop_gives_the_same_weights(accumulate: int, tmp_path) -> None:
    """Mean over each batch, the smaller last one included, times the scale; warm-up and steps of the rate; SGD."""
    flags = ("--train-batch", 10, "--epochs", 3, "--warmup", 4, "--schedule", 1, "--gamma", 0.5, "--noise_level", 0,
             "--override", "--momentum", 0.8, "--weight-decay", 0.01, "--accumulate", accumulate, "--vth_back", 0.05)
    train("-c", tmp_path, *flags)
    torch.manual_seed(3)
    experiment = small()
    model = experiment.build_model(experiment.arguments(["--vth_back", "0.05"])).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.8, weight_decay=0.01)
    order, iteration = Batches(24, 10, seed=3), 0
    for epoch in range(3):
        order.start(epoch)
        for batch in order:
            places = torch.tensor([index for _, index, _ in batch])
            rate = 0.1 * min(1, (iteration + 1) / 4) * (0.5 if epoch >= 1 else 1)
            optimizer.param_groups[0]["lr"] = rate / 100
            optimizer.zero_grad()
            (F.cross_entropy(model(IMAGES[places]), LABELS[places]) * 100).backward()
            optimizer.step()
            iteration += 1
    assert iteration == 9
    initial = experiment.build_model(experiment.arguments()).state_dict()
    for name, value in stored(tmp_path)["state_dict"].items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-5, atol=1e-6)
    learnt = stored(tmp_path)["state_dict"]["classifier.weight"]
    assert not torch.allclose(learnt, initial["classifier.weight"], rtol=0, atol=1e-4)


def test_evaluation_drops_nothing(tmp_path, capsys) -> None:
    """With a dropout that would leave little, results are those without."""
    train("-c", tmp_path, "--max-iters", 1)
    outputs = []
    for drop in (0, 0.9):
        train("--resume", tmp_path / "checkpoint.pth.tar", "-e", "--drop", drop, "--override")
        outputs.append(capsys.readouterr().out.splitlines()[-1])
    assert outputs[0] == outputs[1]


def test_killed_between_two_files(tmp_path, monkeypatch) -> None:
    """The last checkpoint never says how good the best network is before that one's file is there."""
    run = made(tmp_path)
    run.state = RunState(iteration=3, best_acc=30.0)
    run.save()

    def killed(path, contents) -> None:
        write_atomically(path, contents)
        raise KeyboardInterrupt

    monkeypatch.setattr("utils.checkpoint.write_atomically", killed)
    run.state.best_acc = 40.0
    with pytest.raises(KeyboardInterrupt):
        run.save(best=True)
    assert stored(tmp_path, "model_best.pth.tar")["best_acc"] == 40 and stored(tmp_path)["best_acc"] == 30


def test_the_first_of_equals_is_the_best(tmp_path) -> None:
    """Accuracy on three classes of eight stays at a third here; a later network that is no better replaces nothing."""
    train("-c", tmp_path, "--lr", 1e-9)
    assert stored(tmp_path)["best_acc"] == stored(tmp_path, "model_best.pth.tar")["best_acc"]
    assert stored(tmp_path, "model_best.pth.tar")["iteration"] == 3


def test_a_warning_is_given_once_in_all(tmp_path, capsys) -> None:
    """A resumed run has heard it before."""
    train("-c", tmp_path, "--epochs", 1)
    assert "no backward spike reached layer" in capsys.readouterr().out
    train("-c", tmp_path, "--epochs", 3, "--resume", "auto")
    assert "no backward spike" not in capsys.readouterr().out


def test_another_batch_goes_on_at_the_same_sample(tmp_path) -> None:
    """16 samples into an epoch of 24, batches half as large: two more of them to its end."""
    train("-c", tmp_path, "--max-iters", 2)
    train("-c", tmp_path, "--resume", "auto", "--train-batch", 4, "--override", "--max-iters", 4)
    state = stored(tmp_path)
    assert (state["epoch"], state["batch"], state["iteration"]) == (1, 0, 4)


def test_another_optimizer_starts_anew(tmp_path, capsys) -> None:
    """Momentum of one is nothing to the other; that is said."""
    train("-c", tmp_path, "--max-iters", 1)
    train("-c", tmp_path, "--resume", "auto", "--optimizer", "Adam", "--override", "--max-iters", 2)
    assert "no state of Adam to go on from" in capsys.readouterr().out
    assert "exp_avg" in stored(tmp_path)["optimizer"]["state"][0]


def test_optimizers_get_their_flags() -> None:
    args = small().arguments(["--lr", "0.3", "--momentum", "0.7", "--weight-decay", "0.2"])
    sgd = make_optimizer(torch.nn.Linear(1, 1), args).param_groups[0]
    assert (sgd["lr"], sgd["momentum"], sgd["weight_decay"]) == (0.3, 0.7, 0.2)
    adam = make_optimizer(torch.nn.Linear(1, 1), argparse.Namespace(**{**vars(args), "optimizer": "Adam"}))
    assert isinstance(adam, torch.optim.Adam) and adam.param_groups[0]["weight_decay"] == 0.2


def test_what_says_one_invocation_is_not_taken_over(tmp_path) -> None:
    """A limit, a device, a dry run of before say nothing about the next invocation."""
    train("-c", tmp_path, "--max-iters", 1, "--test-limit", 4, "--save-every", 7)
    args = small().arguments(["--resume", str(tmp_path / "checkpoint.pth.tar")])
    assert (args.test_limit, args.max_iters, args.checkpoint, args.save_every) == (None, None, None, 7)


def test_stored_values_that_no_flag_takes(tmp_path) -> None:
    """A data set, a kind of list or switch that this script does not know: named, with the file."""
    train("-c", tmp_path, "--max-iters", 1)
    state = stored(tmp_path)
    for name, value in (("dataset", "photos"), ("pick", ["x"]), ("deterministic", "yes"), ("epochs", True)):
        torch.save({**state, "arguments": {**state["arguments"], name: value}}, tmp_path / "other.pth.tar")
        assert f"other.pth.tar holds {value!r} for --{name}" in sentence("--resume", tmp_path / "other.pth.tar", "-e")


def test_the_drive_is_compared_with_the_experiments_own(tmp_path, capsys) -> None:
    for flags, words in ((("--train-batch", 16), "so backward spikes are fewer; --scale_factor 200 would"),
                         (("--scale_factor", 200), "so backward spikes are more; --scale_factor 100 would"),
                         (("--scale_factor", 103), "so backward spikes are more; --scale_factor 100 would"),
                         (("--scale_factor", 100.5), None), (("--train-batch", 16, "--scale_factor", 200), None)):
        train("-c", tmp_path, "--dry-run", *flags)
        out = capsys.readouterr().out
        assert words in out if words else "so backward spikes" not in out


def test_provenance_has_the_seed_that_was_drawn(tmp_path) -> None:
    small().main(["-c", str(tmp_path), "--max-iters", "1"])
    kept = json.loads((tmp_path / "args.json").read_text())["arguments"]
    assert kept["manualSeed"] == stored(tmp_path)["arguments"]["manualSeed"] is not None


def test_a_dry_run_reads_test_data_too(tmp_path) -> None:
    """And passes a sample through the network."""
    class Broken(TensorDataset):
        def __getitem__(self, index):
            raise IndexError("no such sample")

    good, bad = TensorDataset(IMAGES, LABELS), Broken(IMAGES, LABELS)
    for data in ((good, bad, None), (bad, good, None)):
        with pytest.raises(IndexError):
            train("-c", tmp_path / "none", "--dry-run", build_data=lambda args, data=data: data)
    fails = built(lambda model: setattr(model, "forward", lambda *_: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        train("-c", tmp_path / "none", "--dry-run", build_model=fails)
    assert not (tmp_path / "none").exists()


def test_all_processes_do_what_the_first_one_settled(tmp_path) -> None:
    """Seeds that were drawn, and checkpoints that were found, differ between processes until they agree."""
    train("-c", tmp_path, "--max-iters", 1)

    class Follower(World):
        def leaders(self, value):
            return replace(value[0], seed=7), tmp_path / "checkpoint.pth.tar"

    own = Invocation(args=Arguments({}), folder=Path("x"), seed=5, usual_drive=1.0)
    found = agreed(own, Follower(1, 2))
    assert found.seed == 7 and found.stored.contents["iteration"] == 1


def test_log_keeps_six_digits(tmp_path) -> None:
    rows = [[0.000125, 1.234567, 2.0, 3.0, 4.0, 0.000001, 0.1, 0.2]]
    write_log(tmp_path, rows)
    assert read_log(tmp_path) == rows


def test_plain_lines_tell_the_time_of_an_iteration(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(progress, "PLAIN_INTERVAL", 0.0)
    train("-c", tmp_path, "--max-iters", 4)
    capsys.readouterr()
    train("-c", tmp_path, "--resume", "auto", "--log-every", 1)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch 2/2, batch 2/3: "))
    seconds = float(line.partition("rate ")[2].rpartition(" s an iteration")[0].rpartition(", ")[2])
    row = next(row for row in metrics.read(tmp_path) if row["iteration"] == 5)
    assert seconds == pytest.approx(row["seconds"], rel=0.5)


# Parts of a run, one by one


def test_a_checkpoint_is_written_when_it_is_due(tmp_path, monkeypatch) -> None:
    """Every two iterations of the run, not of an epoch, which has three; its rows of metrics outlast a power cut."""
    saved, lasting, append = [], [], metrics.append

    def note(folder, rows, **settings) -> None:
        lasting.append(settings["lasting"])
        append(folder, rows, **settings)

    def save(contents, *_) -> None:
        rows = [row["iteration"] for row in metrics.read(tmp_path) if row["phase"] == "train"]
        assert lasting[-1] and rows == list(range(1, contents["iteration"] + 1))
        saved.append(contents["iteration"])

    monkeypatch.setattr(metrics, "append", note)
    monkeypatch.setattr(checkpoint, "save", save)
    training.fit(made(tmp_path, "--save-every", 2, "--log-every", 1))
    assert saved == [2, 3, 4, 6, 6]


def test_how_often_numbers_are_looked_at(tmp_path, monkeypatch) -> None:
    """After every so many iterations of the run, as each look waits for the device; only then are metrics written."""
    looks, written, train_on = [], [], training.train_on

    def note(*arguments, look: bool) -> None:
        train_on(*arguments, look=look)
        looks.append(look)
        written.append(len(metrics.read(tmp_path)))

    monkeypatch.setattr(training, "train_on", note)
    monkeypatch.setitem(training.FINITE_INTERVAL, "cpu", 4)
    run = made(tmp_path, "--log-every", 1)
    training.fit(run)
    assert looks == [False, False, False, True, False, False]
    assert written == [0, 0, 0, 4, 5, 5]  # at the end of each iteration; the epoch after three wrote four rows


def test_seconds_of_an_iteration_are_of_training(tmp_path, monkeypatch) -> None:
    """A row that begins before an evaluation and ends after it leaves that out."""
    now = [0.0]

    def taking(seconds: float, work):
        def timed(*arguments, **named):
            now[0] += seconds
            return work(*arguments, **named)

        return timed

    monkeypatch.setattr(metrics, "time", argparse.Namespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(training, "train_on", taking(1, training.train_on))
    monkeypatch.setattr(training, "evaluate", taking(1000, training.evaluate))
    training.fit(made(tmp_path, "--log-every", 2))
    assert [row["seconds"] for row in metrics.read(tmp_path) if row["phase"] == "train"] == [1, 1, 1]


def test_what_is_trained_already_is_not_trained_again(tmp_path) -> None:
    """A run that was stopped while it evaluated after ``--max-iters`` evaluates alone."""
    run = made(tmp_path, "--max-iters", 2)
    results = training.train_one_epoch(run, run.model)
    assert training.train_one_epoch(run, run.model) == results and run.state.iteration == 2


def test_another_batch_after_the_last_sample(tmp_path) -> None:
    """Three batches of 10 are all 24 samples, and so are six of 4."""
    run = made(tmp_path, "--train-batch", 4)
    run.load_state_dict({"epoch": 1, "batch": 3, "iteration": 6, "arguments": {"train_batch": 10}}, tmp_path)
    assert (run.state.epoch, run.state.batch) == (1, 6)


def test_the_log_of_a_published_checkpoint_ends_with_it(tmp_path) -> None:
    """Its best network is older than the log beside it."""
    lines = ["\t".join(logs.COLUMNS), *("\t".join([f"{epoch}.5"] * 8) for epoch in range(3))]
    (tmp_path / "log.txt").write_text("\n".join(lines))
    run = made(tmp_path)
    run.load_state_dict({"epoch": 2}, tmp_path)
    assert run.state.history == [[0.5] * 8, [1.5] * 8] and run.state.iteration == 6


def test_an_epoch_in_log_and_words(tmp_path, capsys) -> None:
    """Every number in its column, with the learning rate of the last iteration; a line each for training and test."""
    run = made(tmp_path, "--warmup", 10)
    run.state = RunState(batch=3, iteration=3)
    trained = {"loss": 1.5, "top1": 20.0, "top5": 60.0, "forward_rate": 0.25, "backward_rate": 0.125,
               "backward_rates": [0.125], "saturated": 0.0}
    training.finish_epoch(run, trained, {"loss": 2.5, "top1": 30.0, "top5": 70.0, "forward_rate": 0.5})
    assert read_log(tmp_path) == run.state.history == [[pytest.approx(0.03), 1.5, 2.5, 20.0, 30.0, 0.25, 0.125, 0.5]]
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "epoch 1/2, 3 iterations",
        "  train: loss 1.5000, top-1 20.00%, top-5 60.00%, forward rate 0.2500, backward rate 0.1250",
        "  test:  loss 2.5000, top-1 30.00%, top-5 70.00%, forward rate 0.5000"]
    assert (run.state.epoch, run.state.batch, run.state.best_acc) == (1, 0, 30.0)


def test_going_to_an_epoch(tmp_path) -> None:
    """What came before it stays: rows of the log, the best accuracy, warnings that were given."""
    run = made(tmp_path)
    run.state = RunState(epoch=2, batch=1, iteration=7, best_acc=40.0, history=[[1.0] * 8, [2.0] * 8],
                         warned=["starved"])
    run.start_at(1)
    assert run.state == RunState(epoch=1, iteration=3, best_acc=40.0, history=[[1.0] * 8], warned=["starved"],
                                 meters=run.state.meters, window=run.state.window)
    assert not run.state.meters.sums and not run.state.window.sums


def test_a_new_run_begins_at_the_epoch_that_it_is_told(tmp_path, capsys) -> None:
    """``--start-epoch`` without ``--resume``, as the published scripts take it: the second of two epochs."""
    train("-c", tmp_path, "--start-epoch", 1, "--max-iters", 5, "--schedule", 1)
    state = stored(tmp_path)
    assert (state["epoch"], state["batch"], state["iteration"]) == (1, 2, 5)
    assert read_log(tmp_path)[0][0] == pytest.approx(0.01)
    assert "note: log.txt has rows of 0 of 1 epochs" in capsys.readouterr().out


@pytest.mark.parametrize("flags, words", [
    (("--momentum", 0.5, "--optimizer", "Adam"), "--momentum counts only with --optimizer SGD"),
    (("--gamma", 0.5), "--gamma counts only with --schedule"),
    (("--report-samples", 3), "--report-samples counts only with --report"),
    (("-tb", 9, "--method", "ide"), "--time_step_back counts only with --method spide"),
    (("--ide-max-sweeps", 9), "--ide-max-sweeps counts only with --method ide"),
    (("--precision", "fp32", "--engine", "event"), "--precision counts only with --engine cuda, or auto on a GPU")])
def test_flags_that_change_nothing_are_named(tmp_path, capsys, flags, words) -> None:
    """And those that change something are not; a value that nobody gave is not spoken of."""
    train("-c", tmp_path, "--dry-run", *flags)
    assert [line for line in capsys.readouterr().out.splitlines() if "counts only" in line] == [f"note: {words}"]


def test_an_epoch_that_is_gone_back_to(tmp_path, capsys) -> None:
    """With another batch size too: rows of finished epochs stay, once; the origin is told as it is."""
    train("-c", tmp_path, "--epochs", 3)
    train("-c", tmp_path, "--epochs", 3, "--resume", "auto", "--train-batch", 4, "--override", "--start-epoch", 1)
    assert "checkpoint.pth.tar; begins as if after epoch 1, iteration 6\n" in capsys.readouterr().out
    tests = [(row["epoch"], row["iteration"]) for row in metrics.read(tmp_path) if row["phase"] == "test"]
    assert tests == [(1, 3), (2, 12), (3, 18)]
    found = sentence("-c", tmp_path / "other", "--start-epoch", 1, "--max-iters", 3)
    assert "--max-iters 3 ends before --start-epoch 1 begins, after 3 iterations" in found
    assert not (tmp_path / "other").exists()


def test_summary(tmp_path) -> None:
    run = made(tmp_path, "--test-limit", 5, "--train-batch", 10)
    invocation = Invocation(args=run.args, folder=tmp_path, seed=3, usual_drive=10.0)
    lines = dict(line.split(maxsplit=1) for line in summary(run, invocation).splitlines())
    parameters = sum(p.numel() for p in run.model.parameters())
    assert lines["network"] == f"LeNet, {parameters} parameters, {run.model.num_neurons} neurons, 3 classes"
    assert lines["device"].startswith("CPU, 1 thread; engine dense; PyTorch ")
    assert lines["data"] == "noise, 24 training and 5 test samples; 3 iterations of 10 samples an epoch"
    assert lines["gradient"] == "scale_factor / batch = 100 / 10 = 10 drives the backward network"
    assert lines["run"] == f"folder {tmp_path}, seed 3" and "note:" not in lines


def test_what_an_evaluation_says(tmp_path, monkeypatch, capsys) -> None:
    """Of ``--evaluate`` results alone; in training, plain lines of progress too."""
    monkeypatch.setattr(progress, "PLAIN_INTERVAL", 0.0)
    run = made(tmp_path)
    training.evaluate(run)
    assert capsys.readouterr().out.startswith("test, batch 1/1: loss ")
    run = replace(run, args=Arguments({**vars(run.args), "evaluate": True, "optimizer": "Adam"}))
    training.evaluate(run)
    run.load_state_dict({"epoch": 1, "optimizer": None}, tmp_path)
    assert capsys.readouterr().out == ""
    invocation = Invocation(args=run.args, folder=tmp_path, seed=3, usual_drive=12.5)
    assert "Adam does not see" not in summary(run, invocation)
    trained = replace(run, args=Arguments({**vars(run.args), "evaluate": False}))
    assert "Adam does not see" in summary(trained, invocation)


def test_files_of_a_run_that_goes_on(tmp_path, monkeypatch) -> None:
    """In its folder, however that is spelt; in another one; before its first epoch; stopped while it was evaluated."""
    row = [0.5] * 8
    rows = [{"phase": phase, "iteration": 3, "loss": 1, "top1": 1, "seconds": 1} for phase in ("train", "test")]
    first, other = tmp_path / "first", tmp_path / "other"
    run = made(first)
    run.state = RunState(epoch=1, iteration=3, best_acc=30.0, history=[row], evaluated=False)
    run.save(best=True, rows=[row])
    assert stored(first).keys() == stored(first, "model_best.pth.tar").keys() >= {"optimizer", "random_state"}
    metrics.append(first, rows, lasting=False)
    monkeypatch.chdir(tmp_path)
    found = checkpoint.load(Path("first", "checkpoint.pth.tar"))

    def gone_on(folder: Path, epoch: int | None = None):
        folder.mkdir(exist_ok=True)
        again = made(folder)
        again.resume(found)
        if epoch is not None:
            again.start_at(epoch)
        arrange(again, found)
        return again

    again = gone_on(other)
    assert (other / "model_best.pth.tar").read_bytes() == (first / "model_best.pth.tar").read_bytes()
    assert again.state.best_acc == 30.0 and metrics.read(other) == rows[:1]
    assert gone_on(first).state.best_acc == 30.0 and metrics.read(first) == rows[:1]
    assert not list(first.glob("previous-*"))
    again = gone_on(first, epoch=0)  # of which there is neither a log nor a best network
    assert again.state.best_acc == -1.0 and (first / "previous-1" / "log.txt").exists()
    assert sorted(path.name for path in first.iterdir()) == ["checkpoint.pth.tar", "metrics.jsonl", "previous-1"]
