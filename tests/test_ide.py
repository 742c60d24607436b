"""IDE, the backward pass in floats, against the oracle that knows nothing of it, and SPIDE against IDE."""
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from modules import FeedbackSNN, SpikeStatistics, engines, notices, synapses
from modules.ide import IDE
from modules.neurons import leak_weights
from modules.spide import SPIDE
from tests.networks import NAMES, sample_input, small
from tests.oracle import equilibrium, exact_gradients

CPU = torch.device("cpu")


def tight(name: str, **settings) -> FeedbackSNN:
    """A small network in float64 whose backward pass is IDE to the last digits."""
    network = small(name, gain=2.0, **settings).train().network
    network.method, network.tolerance, network.max_sweeps = "ide", 1e-14, 1000
    return network


def exact(network: FeedbackSNN, x: Tensor, keys: Tensor, gradient: Tensor, wanted: list[Tensor]) -> list[Tensor]:
    """Gradients by the oracle, at the rates of the network's own simulation."""
    circuit, chosen = network.bind(x, keys)
    forward = engines.select(network.engine, CPU).simulate_forward(circuit, chosen)
    masks = [(count > 0) & (count < network.time_step) for count in forward.counts]
    mean = chosen
    if network.event_input:
        mean = torch.tensordot(leak_weights(network.time_step, network.neuron.leak, like=x), chosen, dims=1)
    return exact_gradients(circuit, mean, forward.rates, masks, gradient, wanted)


@pytest.mark.parametrize("engine", ["dense", "event"])
@pytest.mark.parametrize("leak, dropout", [(1.0, 0.0), (1.0, 0.25), (0.98, 0.0), (0.98, 0.25)])
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_exact_implicit_gradient(name: str, leak: float, dropout: float, engine: str) -> None:
    """For every parameter and the input: IF and LIF, dropout, event input, restricted norms, to 1e-10."""
    torch.manual_seed(0)
    network = tight(name, leak=leak, dropout=dropout, engine=engine)
    x, keys = sample_input(name, small(name)).requires_grad_(), torch.arange(2)
    statistics = SpikeStatistics()
    rates = network(x, statistics, keys=keys)
    gradient = torch.randn_like(rates)
    wanted = [x, *network.parameters()]
    found = torch.autograd.grad(rates, wanted, gradient)
    for own, oracle in zip(found, exact(network, x, keys, gradient, wanted), strict=True):
        assert oracle.any() and (own - oracle).norm() <= 1e-10 * oracle.norm()
    assert statistics.backward_rates is None and statistics.residual <= 1e-14
    assert statistics.sweeps == 1 if network.feedback is None else statistics.sweeps > 3


@pytest.mark.parametrize("name", ["lenet", "alexnetf", "convnetf"])
def test_finite_differences_through_the_fixed_point(name: str) -> None:
    """Central differences of the loss at the equilibrium of rates, where IDE is put instead of simulated rates."""
    torch.manual_seed(1)
    network = tight(name).eval()
    x = sample_input(name, small(name))
    circuit, chosen = network.bind(x)
    mean = chosen.mean(0) if network.event_input else chosen
    circuit = replace(circuit, event_input=False)

    class AtEquilibrium(type(engines.require("dense"))):
        """Simulates to the end of time."""

        def simulate_forward(self, circuit, x):
            rates = equilibrium(circuit, x)
            counts = [torch.where((a > 0) & (a < 1), 1.0, 0.0).to(a) for a in rates]  # silent otherwise: mask 0
            return engines.ForwardResult(rates=rates, counts=counts)

    rates = IDE.apply(circuit, AtEquilibrium(), None, mean, *circuit.tensors)
    gradient = torch.randn_like(rates)
    parameters = list(network.parameters())
    for parameter, own in zip(parameters, torch.autograd.grad(rates, parameters, gradient)):
        direction, losses = torch.randn_like(parameter), []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                parameter += step * direction
                losses.append((gradient * equilibrium(replace(network.bind(x)[0], event_input=False), mean)[-1]).sum())
                parameter -= step * direction
        slope = ((losses[0] - losses[1]) / 2e-6).item()
        assert slope == pytest.approx((own * direction).sum().item(), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_spide_approaches_ide_like_one_over_steps(name: str) -> None:
    """The library's own exact gradient as reference: SPIDE's error falls like 1 / T_B, for every parameter."""
    torch.manual_seed(0)
    network = tight(name, dropout=0.25)
    circuit, x = network.bind(sample_input(name, small(name)), torch.arange(2))
    engine, parameters = engines.select("event", CPU), list(network.parameters())
    errors, gradient, reference = [], None, None
    for method, steps in ((IDE, 1), (SPIDE, 100), (SPIDE, 1000), (SPIDE, 4000)):
        rates = method.apply(replace(circuit, time_step_back=steps), engine, None, x, *circuit.tensors)
        if gradient is None:
            gradient = torch.randn_like(rates)
            gradient *= (0.5 if name == "convnetf" else 0.8) * network.couple.quantum / gradient.abs().max()
        found = torch.autograd.grad(rates, parameters, gradient, retain_graph=True)
        reference = found if method is IDE else reference
        errors.append([((a - b).norm() / b.norm()).item() for a, b in zip(found, reference)])
    for _, few, more, many in zip(*errors):
        assert more < few / 3 and many < few / 10 and many < 0.03


@pytest.mark.parametrize("factor, ends", [(1.5, 400), (30.0, 100), (30.0, 1)])
def test_feedback_that_is_no_contraction(factor: float, ends: int) -> None:
    """It says so once, with the residual and what to do; the gradient is finite, and the sweeps stay bounded."""
    notices.GIVEN.clear()
    torch.manual_seed(2)
    network = FeedbackSNN(input=synapses.Linear(4, 6), feedback=synapses.Linear(6, 6, bias=False), method="ide",
                          time_step=20, max_sweeps=ends)
    with torch.no_grad():
        network.feedback.weight.copy_(factor * 2 * torch.eye(6))  # times 1 / kappa: each turn grows by the factor
    statistics = SpikeStatistics()
    x = torch.randn(8, 4)
    with pytest.warns(UserWarning, match=r"did not converge: after \d+ sweeps .* was [\d.]+ of .*max_norm") as caught:
        for _ in range(2):
            rates = network(x, statistics)
            ((rates > 0) & (rates < 1)).any() or pytest.fail("no unit passes gradient")
            rates.square().sum().backward()
    assert len(caught) == 1 and all(p.grad.isfinite().all() and p.grad.any() for p in network.parameters())
    assert 1e-4 < statistics.residual <= 1 and min(2, ends) <= statistics.sweeps <= ends


def test_tolerance_decides_when_to_stop() -> None:
    """A looser one takes fewer sweeps and leaves an error of its size; scale changes nothing but rounding."""
    torch.manual_seed(3)
    network = tight("alexnetf")
    x, found = sample_input("alexnetf", small("alexnetf")), {}
    for tolerance, scale in ((1e-14, 1.0), (1e-2, 1.0), (1e-14, 1000.0)):
        network.tolerance, statistics = tolerance, SpikeStatistics()
        network.zero_grad()
        (scale * network(x, statistics).square().sum()).backward()
        found[tolerance, scale] = torch.cat([p.grad.flatten() / scale for p in network.parameters()]), statistics.sweeps
    reference, sweeps = found[1e-14, 1.0]
    loose, fewer = found[1e-2, 1.0]
    assert fewer < sweeps and 1e-13 < (loose - reference).norm() / reference.norm() < 2e-2
    torch.testing.assert_close(found[1e-14, 1000.0][0], reference, rtol=1e-9, atol=1e-12)


def test_gradients_that_are_zero_converge_at_once() -> None:
    network = tight("alexnetf")
    statistics = SpikeStatistics()
    (0 * network(sample_input("alexnetf", small("alexnetf")), statistics)).sum().backward()
    assert statistics.residual == 0 and all(not p.grad.any() for p in network.parameters())
