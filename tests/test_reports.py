"""Learning rate, sums of an epoch, log and metrics files, warnings."""
import argparse
import math

import pytest
import torch

from modules import SpikeStatistics
from utils import metrics
from utils.logs import COLUMNS, _draw, read_log, write_log
from utils.meters import Meters
from utils.schedule import learning_rate
from utils.training import gradient_warnings


def test_learning_rate() -> None:
    """A linear warm-up by iteration, then a factor at each milestone epoch."""
    def rate(iteration: int, epoch: int, warmup: int = 400) -> float:
        return learning_rate(iteration, epoch, base=0.05, warmup=warmup, milestones=[50, 75], gamma=0.1)

    assert rate(0, 0) == pytest.approx(0.05 / 400) and rate(199, 0) == pytest.approx(0.025)
    assert rate(399, 1) == rate(5000, 49) == 0.05 and rate(0, 0, warmup=0) == 0.05
    assert rate(9999, 50) == pytest.approx(0.005) and rate(9999, 75) == pytest.approx(0.0005)


def statistics(forward: list[float], backward: list[float] | None = None) -> SpikeStatistics:
    own = SpikeStatistics(neurons=[10, 30], forward_rates=torch.tensor(forward))
    if backward:
        own.backward_rates, own.saturated = torch.tensor(backward), torch.tensor(0.25)
    return own


def test_meters_weigh_batches_by_their_size() -> None:
    """Loss, accuracies and rates over 4 + 2 samples; the mean rate counts neurons, not layers."""
    meters = Meters()
    logits = torch.eye(6) - 0.01 * torch.arange(6)
    two = [Meters(), Meters()]  # of two processes
    batches = ((torch.ones(4), torch.tensor([0, 1, 2, 0]), statistics([0.2, 0.4], [0.1, 0.0])),
               (torch.full((2,), 4.0), torch.tensor([1, 1]), statistics([0.5, 0.1], [0.4, 0.3])))
    for number, (losses, targets, own) in enumerate(batches):
        two[number] = Meters.of(losses, logits[:len(losses)], targets, own, torch.ones(len(losses), dtype=torch.bool))
        meters += two[number]
    two[1] += Meters.of(torch.tensor([float("nan")]), logits[:1], torch.tensor([0]), batches[0][2],
                        torch.tensor([False]))
    states = [Meters().state_dict(), *(each.state_dict() for each in two)]
    assert sum(map(Meters, states), Meters()).state_dict()["sums"].keys() == meters.sums.keys()
    for name, total in sum(map(Meters, states), Meters()).sums.items():
        torch.testing.assert_close(total, meters.sums[name])
    found = meters.results()
    assert found["loss"] == pytest.approx(2.0) and found["top1"] == pytest.approx(400 / 6)
    assert found["top5"] == pytest.approx(100.0)
    assert found["forward_rates"] == pytest.approx([0.3, 0.3]) and found["backward_rates"] == pytest.approx([0.2, 0.1])
    assert found["backward_rate"] == pytest.approx((0.2 * 10 + 0.1 * 30) / 40) and found["saturated"] == 0.25
    assert Meters(meters.state_dict()).results() == found


def test_log_files(tmp_path) -> None:
    """One row per epoch, tab-separated, under the published columns; written anew as a whole each time."""
    rows = [[0.1, 2.3, 2.2, 10.0, 11.0, 0.05, 0.01, 0.05], [0.1, 2.0, 1.9, 20.0, 22.5, 0.06, 0.02, 0.06]]
    for count in (1, 2, 2):
        write_log(tmp_path, rows[:count])
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert lines[0].split("\t") == list(COLUMNS) and len(lines) == 3
    assert read_log(tmp_path) == rows
    assert (tmp_path / "log.png").read_bytes()[:4] == b"\x89PNG"
    (tmp_path / "log.txt").write_text("something else\n1\t2\n")
    assert read_log(tmp_path) == []
    (tmp_path / "log.txt").write_text("\t".join(COLUMNS) + "\n" + "\t".join(["much"] * 8) + "\n")
    assert read_log(tmp_path) == []


def test_warnings_say_which_way_to_turn() -> None:
    args = argparse.Namespace(scale_factor=100.0, time_step_back=50, train_batch=32)
    quiet = {"backward_rates": [0.01, 0.02], "saturated": 0.0}
    assert gradient_warnings(args, quiet) == {}
    starved = gradient_warnings(args, {**quiet, "backward_rates": [0.0, 0.02]})["starved"]
    assert "layer 0" in starved and "raise --scale_factor (100)" in starved
    saturated = gradient_warnings(args, {**quiet, "saturated": 0.2})["saturated"]
    assert "20.0% of the output units" in saturated and "lower --scale_factor" in saturated
    assert "saturated" in gradient_warnings(args, {**quiet, "saturated": 0.02})
    assert gradient_warnings(args, {**quiet, "saturated": 0.005}) == {}
    assert gradient_warnings(args, {"backward_rates": None, "saturated": None}) == {}  # of IDE


def test_picture_of_a_log() -> None:
    """What each of its panels shows, over epochs from 1 and over iterations."""
    rows = [[0.1, 2.3, 2.2, 10.0, 11.0, 0.05, 0.01, 0.06], [0.1, 2.0, 1.9, 20.0, 22.5, 0.07, 0.02, 0.08]]
    measured = [{"iteration": 10, "backward_rates": [0.1, 0.2]}, {"iteration": 12},
                {"iteration": 20, "backward_rates": [0.3, 0.4]}]
    shown = [{line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}
             for axes in _draw(rows, measured).axes]
    assert shown == [
        {"Train Loss": ([1, 2], [2.3, 2.0]), "Valid Loss": ([1, 2], [2.2, 1.9])},
        {"Train Acc.": ([1, 2], [10.0, 20.0]), "Valid Acc.": ([1, 2], [11.0, 22.5])},
        {"Train Forward Firing Rate": ([1, 2], [0.05, 0.07]), "Train Backward Firing Rate": ([1, 2], [0.01, 0.02]),
         "Test Forward Firing Rate": ([1, 2], [0.06, 0.08])},
        {"layer 0": ([10, 20], [0.1, 0.3]), "layer 1": ([10, 20], [0.2, 0.4])}]


def test_metrics_up_to_where_a_run_goes_on(tmp_path) -> None:
    """The evaluation after an iteration is what came after it, if the run did not get so far."""
    rows = [{"phase": phase, "iteration": iteration, "loss": 1, "top1": 1, "seconds": 1} for phase, iteration in
            (("train", 2), ("train", 3), ("test", 3), ("train", 4))]
    folder = tmp_path / "other"
    folder.mkdir()
    metrics.cut(tmp_path, folder, finished=0, running=True, iteration=3, evaluated=True)
    assert list(folder.iterdir()) == []
    metrics.append(tmp_path, rows, lasting=False)
    for iteration, evaluated, count in ((3, True, 3), (3, False, 2), (2, True, 1), (1, True, 0)):
        metrics.cut(tmp_path, folder, finished=0, running=True, iteration=iteration, evaluated=evaluated)
        assert metrics.read(folder) == rows[:count]
    assert metrics.read(tmp_path) == rows


def test_metrics_are_json(tmp_path) -> None:
    """Which has no number that is not finite."""
    metrics.append(tmp_path, [{"loss": math.nan, "rates": [math.inf, 0.5]}], lasting=False)
    assert (tmp_path / metrics.NAME).read_text() == '{"loss": null, "rates": [null, 0.5]}\n'


def test_clock(monkeypatch) -> None:
    """Each lap from the end of the one before, over its own iterations, whenever it is read."""
    times = iter((10.0, 14.0, 23.0))
    monkeypatch.setattr(metrics, "time", argparse.Namespace(perf_counter=lambda: next(times)))
    clock = metrics.Clock(torch.device("cpu"), 4)
    laps = [clock.lap(6), clock.lap(9)]
    assert [lap() for lap in laps] == [2.0, 3.0]
