"""One step of the neurons, against the equations of the paper written out with scalars."""
import pytest
import torch

from modules import IF, LIF, TernaryCouple
from modules.neurons import leak_sum, leak_weights


@pytest.mark.parametrize("neuron", [IF(), IF(v_threshold=0.5, u_rest=0.0), LIF(leak=0.9), LIF(v_threshold=2, leak=0.5)])
def test_forward_neuron(neuron: LIF) -> None:
    """u += I; s = [u >= v_th]; u = leak (u - kappa s), for currents that fire it at, above and below the threshold."""
    currents = torch.tensor([0.3, neuron.v_threshold, -1.0, 3.0, 0.7, 5.0], dtype=torch.float64)
    potential, spike, expected = torch.zeros(1).double(), torch.zeros(1).double(), 0.0
    for current in currents:
        neuron.step_(potential, current[None], spike)
        expected += current.item()
        fired = expected >= neuron.v_threshold
        expected = neuron.leak * (expected - (neuron.v_threshold - neuron.u_rest) * fired)
        assert spike.item() == fired and potential.item() == expected


@pytest.mark.parametrize("leak", [1.0, 0.75])
def test_ternary_couple_is_odd(leak: float) -> None:
    """A couple fires -1 and 1 alike: the opposite current gives the opposite spikes; at the threshold it fires."""
    couple = TernaryCouple(v_threshold=0.5, leak=leak)
    potentials, spikes, scratch = (torch.zeros(2).double() for _ in range(3))
    fired = []
    for current in (0.5, 0.25, -0.75, 2.0, -0.125, -2.0, -1.0):
        count = couple.step_(potentials, torch.tensor([current, -current]).double(), spikes, scratch)
        assert potentials[0] == -potentials[1] and spikes[0] == -spikes[1] and count == spikes.abs().sum()
        fired.append(spikes[0].item())
    assert fired[0] == 1 and {-1.0, 0.0, 1.0} == set(fired)


def test_firing_rate_of_a_constant_current() -> None:
    """An IF neuron turns a current in [0, kappa] into the rate I / kappa, a couple J in [-kappa_b, kappa_b] into J."""
    steps, currents = 4000, torch.linspace(0, 2, 9).double()
    potential, spike, count = torch.zeros(9).double(), torch.zeros(9).double(), torch.zeros(9).double()
    for _ in range(steps):
        IF().step_(potential, currents, spike)
        count += spike
    torch.testing.assert_close(count / steps, currents / 2, rtol=0, atol=1.5 / steps)
    potential, total = torch.zeros(9).double(), torch.zeros(9).double()
    for _ in range(steps):
        TernaryCouple().step_(potential, currents - 1, spike, torch.zeros(9).double())
        total += spike
    torch.testing.assert_close(total / steps, currents - 1, rtol=0, atol=1.5 / steps)


def test_leak_weights() -> None:
    """Weights of the steps in a rate: leak^(T-t), summing to 1; plain mean without leak."""
    like = torch.zeros(0).double()
    torch.testing.assert_close(leak_weights(3, 0.5, like=like), torch.tensor([1, 2, 4]).double() / 7)
    torch.testing.assert_close(leak_weights(4, 1.0, like=like), torch.full((4,), 0.25).double())
    assert leak_sum(3, 0.5) == 1.75 and leak_sum(30, 1.0) == 30


@pytest.mark.parametrize("make, message", [
    (lambda: IF(v_threshold=0), "threshold must be positive"),
    (lambda: IF(v_threshold=1, u_rest=1), "must be below the threshold"),
    (lambda: LIF(leak=1.0), "use IF"),
    (lambda: LIF(leak=0.0), "must lie in"),
    (lambda: TernaryCouple(leak=1.5), "must lie in"),
    (lambda: TernaryCouple(v_threshold=-0.5), "threshold must be positive"),
])
def test_impossible_parameters(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
