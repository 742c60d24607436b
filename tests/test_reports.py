"""Learning rate, sums of an epoch, log files, warnings."""
import argparse

import pytest
import torch

from modules import SpikeStatistics
from utils.logs import COLUMNS, read_log, write_log
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
    two = [Meters(), Meters()]  # as of two processes
    batches = ((torch.ones(4), torch.tensor([0, 1, 2, 0]), statistics([0.2, 0.4], [0.1, 0.0])),
               (torch.full((2,), 4.0), torch.tensor([1, 1]), statistics([0.5, 0.1], [0.4, 0.3])))
    for (losses, targets, own), other in zip(batches, two):
        for each in (meters, other):
            each += Meters.of(losses, logits[:len(losses)], targets, own, torch.ones(len(losses), dtype=torch.bool))
    two[1] += Meters.of(torch.tensor([float("nan")]), logits[:1], torch.tensor([0]), batches[0][2],
                        torch.tensor([False]))
    states = [Meters().state_dict(), *(each.state_dict() for each in two)]
    assert Meters.total(states).state_dict()["sums"].keys() == meters.sums.keys()
    for name, total in Meters.total(states).sums.items():
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


def test_warnings_say_which_way_to_turn() -> None:
    args = argparse.Namespace(scale_factor=100.0, time_step_back=50, train_batch=32)
    quiet = {"backward_rates": [0.01, 0.02], "saturated": 0.0}
    assert gradient_warnings(args, quiet) == {}
    starved = gradient_warnings(args, {**quiet, "backward_rates": [0.0, 0.02]})["starved"]
    assert "layer 0" in starved and "raise --scale_factor (100)" in starved
    saturated = gradient_warnings(args, {**quiet, "saturated": 0.2})["saturated"]
    assert "20.0% of the output units" in saturated and "lower --scale_factor" in saturated
