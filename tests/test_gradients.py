"""SPIDE against the exact implicit gradient, and that oracle against finite differences."""
from dataclasses import replace

import pytest
import torch

from modules import SpikeStatistics, engines
from modules.neurons import leak_weights
from modules.spide import SPIDE
from tests.networks import NAMES, sample_input, small
from tests.oracle import equilibrium, exact_gradients

STEPS_BACK = (100, 1000, 4000)
# Largest entry of the gradient that enters, in units of kappa_b: large, so that spikes reach the first layer, yet no
# couple saturates, as some do where the solution exceeds kappa_b.
PEAK = {"lenet": 0.8, "alexnetf": 0.8, "cifarnetf": 0.8, "convnetf": 0.5}


def gradient_errors(name: str, *, leak: float = 1.0, dropout: float = 0.0,
                    engine: str = "dense") -> dict[str, list[float]]:
    """Relative error of every parameter's gradient at each of ``STEPS_BACK``, for one draw of network and dropout."""
    torch.manual_seed(0)
    model = small(name, leak=leak, dropout=dropout, gain=2.0).train()
    network, x = model.network, sample_input(name, model)
    circuit, chosen = network.bind(x)  # draws the dropout masks
    simulator = engines.select(engine, x.device)
    with torch.no_grad():
        forward = simulator.simulate_forward(circuit, chosen)
    masks = [(count > 0) & (count < network.time_step) for count in forward.counts]
    mean = torch.tensordot(leak_weights(network.time_step, leak, like=x), chosen, dims=1) if network.event_input else x
    gradient = torch.randn_like(forward.rates[-1])
    gradient *= PEAK[name] * network.couple.quantum / gradient.abs().max()
    parameters = dict(network.named_parameters())
    exact = exact_gradients(circuit, mean, forward.rates, masks, gradient, list(parameters.values()))
    errors = {parameter: [] for parameter in parameters}
    for steps in STEPS_BACK:
        rates = SPIDE.apply(replace(circuit, time_step_back=steps), simulator, None, chosen, *circuit.tensors)
        found = torch.autograd.grad(rates, list(parameters.values()), gradient, retain_graph=True)
        for parameter, a, b in zip(parameters, found, exact):
            errors[parameter].append(((a - b).norm() / b.norm()).item())
    return errors


@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("name", NAMES)
def test_error_falls_like_one_over_steps(name: str, dropout: float) -> None:
    """With IF neurons the gradient of every parameter converges to the exact one, with error O(1/T_B)."""
    for parameter, (few, more, many) in gradient_errors(name, dropout=dropout).items():
        assert more < few / 3 and many < few / 10, f"{parameter}: {few:.2g} {more:.2g} {many:.2g}"
        assert many < 0.03, f"{parameter}: {many:.2g}"


@pytest.mark.parametrize("name", NAMES)
def test_leaky_neurons_keep_a_residual(name: str) -> None:
    """LIF neurons near the exact gradient in the last synapse only, and more steps do not remove the residual.

    Currents below about v_th (1 - leak) never make a couple fire, so the error grows from the last layer to the first.
    """
    errors = gradient_errors(name, leak=0.98)
    for parameter, (_, more, many) in errors.items():
        assert many > 0.004 and many > more / 2, f"{parameter}: {more:.2g} {many:.2g}"
    synapses = [parameter for parameter in errors if parameter.startswith("layers") and "weight" in parameter]
    assert errors[synapses[-1] if synapses else "input.weight"][-1] < 0.04


@pytest.mark.parametrize("name", ["lenet", "alexnetf"])
def test_oracle_against_finite_differences(name: str) -> None:
    """The oracle itself: central differences of the loss through the continuous fixed point."""
    torch.manual_seed(1)
    network = small(name, gain=2.0).eval().network
    x = sample_input(name, small(name))
    gradient = torch.randn_like(network(x))
    circuit, x = network.bind(x)
    with torch.no_grad():
        rates = equilibrium(circuit, x)
    masks = [(rate > 0) & (rate < 1) for rate in rates]
    parameters = list(network.parameters())
    for parameter, exact in zip(parameters, exact_gradients(circuit, x, rates, masks, gradient, parameters)):
        direction = torch.randn_like(parameter)
        losses = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                parameter += step * direction
                losses.append((gradient * equilibrium(*network.bind(x))[-1]).sum().item())
                parameter -= step * direction
        slope = (losses[0] - losses[1]) / 2e-6
        assert slope == pytest.approx((exact * direction).sum().item(), rel=1e-5, abs=1e-8)


def test_gradient_for_the_input() -> None:
    """``torch.autograd.grad`` with respect to images and to event frames converges to the exact gradient too."""
    for name in ("alexnetf", "convnetf"):
        torch.manual_seed(2)
        model = small(name, gain=2.0, time_step_back=4000)
        network, x = model.network, sample_input(name, model).requires_grad_()
        rates = network(x)
        gradient = torch.randn_like(rates) * 0.1
        found, = torch.autograd.grad(rates, x, gradient)
        circuit, chosen = network.bind(x)
        forward = engines.select("dense", x.device).simulate_forward(circuit, chosen)
        masks = [(count > 0) & (count < network.time_step) for count in forward.counts]
        mean = chosen.mean(0) if network.event_input else x
        exact, = exact_gradients(circuit, mean, forward.rates, masks, gradient, [x])
        assert (found - exact).norm() < 0.02 * exact.norm()


def test_saturated_output_units_are_reported() -> None:
    """A gradient beyond kappa_b makes its unit fire at every step, which the statistics show."""
    torch.manual_seed(3)
    network = small("lenet").eval().network
    statistics = SpikeStatistics()
    rates = network(torch.randn(2, 1, 14, 14).double(), statistics)
    gradient = torch.zeros_like(rates)
    gradient[0, :3], gradient[1, 5:8] = 1.5, 0.5
    rates.backward(gradient)
    assert statistics.saturated.item() == pytest.approx(3 / gradient.numel())
