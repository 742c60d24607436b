"""Parity with numbers that the published implementation computed in float64."""
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models import AlexNetF, ConvNetF, LeNet
from modules import IF, LIF, SpikeStatistics, engines
from modules.neurons import leak_sum
from utils import published

GOLDEN = Path(__file__).parent / "golden"
CASES = ("lenet_if", "alexnetf_if", "alexnetf_lif", "convnetf_if")
TOLERANCE = 1e-10


class Case:
    """One golden case: its numbers, and our network with the same parameters."""

    def __init__(self, name: str, engine: str) -> None:
        self.numbers = np.load(GOLDEN / f"{name}.npz")
        leak = float(self.numbers["leak"])
        dynamics = {"neuron": IF() if leak == 1 else LIF(leak=leak), "time_step": int(self.numbers["T_F"]),
                    "time_step_back": int(self.numbers["T_B"]), "dropout": 0.0, "engine": engine}
        self.model = {"lenet": lambda: LeNet(widths=(4, 6, 12), **dynamics),
                      "alexnetf": lambda: AlexNetF(widths=(4, 6, 8, 8, 6), image_size=16, **dynamics),
                      "convnetf": lambda: ConvNetF(width=6, image_size=16, **dynamics)}[name.split("_")[0]]().double()
        weights = {key.removeprefix("weight/"): torch.from_numpy(value) for key, value in self.numbers.items()
                   if key.startswith("weight/")}
        self.names = published._names(weights, self.model)
        self.model.load_state_dict({self.names[key]: value for key, value in weights.items()})
        self.input = self.tensor("input")
        if name.startswith("convnetf"):
            self.input = self.input.permute(0, 4, 1, 2, 3)  # there time is the last dimension

    def tensor(self, key: str) -> torch.Tensor:
        return torch.from_numpy(self.numbers[key])

    def spikes(self, key: str, steps: int) -> np.ndarray:
        return np.unpackbits(self.numbers[key], axis=0, count=steps).astype(np.int8)


@pytest.fixture(params=[(case, engine) for case in CASES for engine in ("dense", "event")], ids="-".join)
def case(request) -> Case:
    return Case(*request.param)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=TOLERANCE)


def test_logits_rates_and_gradients(case: Case) -> None:
    """The whole method, end to end: logits, loss, firing rates and the gradient of every parameter."""
    statistics = SpikeStatistics()
    logits = case.model(case.input, statistics)
    loss = F.cross_entropy(logits, case.tensor("target"))
    close(logits, case.tensor("logits"))
    close(loss, case.tensor("loss"))
    (loss * float(case.numbers["scale_factor"])).backward()
    parameters = dict(case.model.named_parameters())
    for theirs, ours in case.names.items():
        close(parameters[ours].grad, case.tensor(f"grad/{theirs}"))
    for layer in range(len(statistics.neurons)):
        spikes = case.spikes(f"spikes_forward/{layer}", case.model.network.time_step)
        assert statistics.forward_rates[layer].item() == pytest.approx(spikes.mean(), abs=TOLERANCE)


def test_every_forward_spike(case: Case) -> None:
    """Spike trains of all layers, from the spike counts of simulations that are one step longer each."""
    network, frames_first = case.model.network, case.model.network.event_input
    circuit, x = network.bind(case.input)
    engine = engines.select(network.engine, x.device)
    before = None
    for step in range(1, circuit.time_step + 1):
        result = engine.simulate_forward(replace(circuit, time_step=step), x[:step] if frames_first else x)
        for layer, count in enumerate(result.counts):
            fired = count if before is None else count - before[layer]
            expected = case.spikes(f"spikes_forward/{layer}", circuit.time_step)[step - 1]
            np.testing.assert_array_equal(fired.numpy(), expected)
        before = result.counts
    for layer, rate in enumerate(result.rates):
        close(rate, case.tensor(f"forward_rate_per_layer/{layer}"))


def test_every_backward_spike(case: Case) -> None:
    """Ternary spike trains of all layers, from the betas of simulations that are one step longer each."""
    network = case.model.network
    circuit, _ = network.bind(case.input)
    engine, couple, steps = engines.select(network.engine, case.input.device), network.couple, network.time_step_back
    layers = range(len(circuit.feedforward))
    counts = [case.spikes(f"spikes_forward/{layer}", network.time_step).sum(0) for layer in layers]
    masks = [torch.from_numpy((count > 0) & (count < network.time_step)) for count in counts]
    sums = [torch.zeros(mask.shape, dtype=torch.float64) for mask in masks]
    for step in range(1, steps + 1):
        result = engine.simulate_backward(replace(circuit, time_step_back=step), case.tensor("output_grad"), masks)
        for layer, beta in enumerate(result.betas):
            signal = beta * leak_sum(step, couple.leak) - couple.leak * sums[layer]
            sums[layer] = beta * leak_sum(step, couple.leak)
            positive, negative = (case.spikes(f"spikes_backward/{layer}/{sign}", steps)[step - 1]
                                  for sign in ("positive", "negative"))
            close(signal, torch.from_numpy((positive - negative) * couple.quantum))
    for layer, beta in enumerate(result.betas):
        close(beta, case.tensor(f"beta_per_layer/{layer}"))
