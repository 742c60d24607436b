"""Settings of the whole suite."""
import itertools
from types import SimpleNamespace

import pytest
import torch

from modules import IF, LIF, FeedbackSNN, notices, synapses
from utils import logs
from utils.files import write_atomically

# Small networks spend more time waking threads than computing, above all when several processes share two cores.
torch.set_num_threads(1)
torch.manual_seed(0)  # for what modules draw while they are imported


def pytest_sessionstart(session: pytest.Session) -> None:
    """Where several workers test, each first compiles some of the event engine's loops, and takes the others from the
    disk later; else all would compile all, which takes each more than a minute."""
    worker = getattr(session.config, "workerinput", None)
    if worker:
        loops = list(itertools.product((None, synapses.Linear(1, 1)), (IF(), LIF(leak=0.5)),
                                       (torch.float32, torch.float64)))
        number = int(worker["workerid"].removeprefix("gw"))
        mine = loops[number::worker["workercount"]]
        # Back and forth: of two that write the same index at the same time, Numba forgets one.
        for feedback, neuron, number_format in mine[::-1 if number % 2 else 1]:
            network = FeedbackSNN(input=synapses.Linear(1, 1), feedback=feedback, neuron=neuron, engine="event")
            network.to(number_format)(torch.ones(1, 1, dtype=number_format))


@pytest.fixture
def unpictured(monkeypatch) -> None:
    """In place of the picture of a log its numbers, as drawing takes most of the time of a short run."""
    monkeypatch.setattr(logs, "_draw", lambda rows, _: repr(rows).encode())
    monkeypatch.setattr(logs, "figures", SimpleNamespace(save=lambda rows, path: write_atomically(path, rows)))


@pytest.fixture(autouse=True)
def start_afresh():
    """Runs within this process seed its global generator, and warn once of what they cannot do."""
    notices.GIVEN.clear()  # what was said once in another test is said again
    torch.manual_seed(0)
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)
