"""FeedbackSNN as an ordinary module: what users do with one must work, on every engine."""
import copy

import pytest
import torch

from modules import IF, FeedbackSNN, SpikeStatistics, TernaryCouple, synapses


@pytest.fixture(params=["dense", "event"])
def engine(request) -> str:
    return request.param


def network(engine: str, **changes) -> FeedbackSNN:
    """Two convolutional layers with feedback, float64, lively enough to fire in both directions."""
    torch.manual_seed(0)
    parts = {"input": synapses.Conv2d(2, 4, 3, stride=2), "layers": [synapses.Conv2d(4, 6, 3)],
             "feedback": synapses.Conv2d(6, 4, 3, bias=False, max_norm=1.0),
             "couple": TernaryCouple(v_threshold=0.05), "time_step": 12, "time_step_back": 20, **changes}
    net = FeedbackSNN(**parts, engine=engine).double()
    with torch.no_grad():
        for synapse in (net.input, *net.layers):
            synapse.weight.mul_(3)
            synapse.bias.uniform_(0, 0.2)
    return net


def images(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 2, 9, 9, generator=torch.Generator().manual_seed(1)).double()


def gradients(net: FeedbackSNN) -> list[torch.Tensor]:
    return [p.grad.clone() for p in net.parameters()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-14)


def test_two_forward_passes_before_one_backward(engine: str) -> None:
    """Nothing is kept of 'the last call': each pass differentiates with its own spikes."""
    net, (a, b) = network(engine), images(4).split(2)
    net(a).square().sum().backward()
    net(b).square().sum().backward()
    apart = gradients(net)
    assert all(g.any() for g in apart)
    net.zero_grad()
    first, second = net(a), net(b)
    (second.square().sum() + first.square().sum()).backward()
    same(gradients(net), apart)


def test_accumulation_equals_the_whole_batch(engine: str) -> None:
    """With the same gradient per sample, two half batches accumulate to what one batch gives."""
    net, x = network(engine), images(4)
    net(x).square().sum().backward()
    whole = gradients(net)
    net.zero_grad()
    for part in x.split(3):
        net(part).square().sum().backward()
    same(gradients(net), whole)


def test_gradient_for_the_input(engine: str) -> None:
    net, x = network(engine), images().requires_grad_()
    found, = torch.autograd.grad(net(x).square().sum(), x)
    assert found.shape == x.shape and found.any()


def test_frozen_parameters_and_no_grad(engine: str) -> None:
    """Frozen parameters get no gradient, and the others the same as before; under no_grad nothing is recorded."""
    net, x = network(engine), images()
    net(x).square().sum().backward()
    expected = net.layers[0].weight.grad.clone()
    net.zero_grad()
    net.input.requires_grad_(False)
    net(x).square().sum().backward()
    assert net.input.weight.grad is None
    torch.testing.assert_close(net.layers[0].weight.grad, expected)
    with torch.no_grad():
        assert not net.eval()(x).requires_grad
    assert not net.requires_grad_(False)(x).requires_grad


def test_copies_and_state_dict(engine: str) -> None:
    """A deep copy, and another network with the same state, compute the same and are independent."""
    net, x = network(engine), images()
    twin, other = copy.deepcopy(net), network(engine)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(x), twin(x)) and torch.equal(net(x), other(x)) and net(x).any()
    with torch.no_grad():
        twin.input.weight.zero_()
    assert not torch.equal(net(x), twin(x))
    assert "feedback.parametrizations.weight.original" in net.state_dict()


def test_dropout_only_in_training_and_by_key(engine: str) -> None:
    """Keys decide the masks; without keys they differ from call to call; evaluation has none."""
    net, x = network(engine, layers=[synapses.Conv2d(4, 6, 3, dropout=0.5)]), images()
    keys = torch.tensor([3, 1, 2])
    assert torch.equal(net(x, keys=keys), net(x, keys=keys))
    assert torch.equal(net(x, keys=keys)[[2, 0]], net(x[[2, 0]], keys=keys[[2, 0]]))
    assert not torch.equal(net(x), net(x))
    assert (net(x) == 0).double().mean() > 0.4
    net.eval()
    assert torch.equal(net(x), net(x, keys=keys))


def test_masks_lie_where_the_input_does() -> None:
    """Keys may come from a CPU, as those of a DataLoader do."""
    net = network("dense", layers=[synapses.Conv2d(4, 6, 3, dropout=0.5)]).to("meta")
    circuit, _ = net.bind(images().to("meta"), keys=torch.tensor([3, 1, 2]))
    assert circuit.connections[1].dropout.device.type == "meta"


SHAPES = {  # what differs from `network`, and the shapes of input and output
    "no feedback": (lambda: dict(feedback=None), (2, 9, 9), (6, 5, 5)),
    "one layer": (lambda: dict(layers=[], feedback=None), (2, 9, 9), (4, 5, 5)),
    "one layer that feeds itself": (lambda: dict(layers=[], feedback=synapses.Conv2d(4, 4, 3)), (2, 9, 9), (4, 5, 5)),
    "linear only": (lambda: dict(input=synapses.Linear(7, 30), layers=[synapses.Linear(30, 6)],
                                 feedback=synapses.Linear(6, 30)), (7,), (6,)),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_other_compositions(kind: str, engine: str) -> None:
    """Rates in [0, 1] of the right shape, and a gradient for every parameter."""
    changes, source, target = SHAPES[kind]
    torch.manual_seed(2)
    net = network(engine, **changes())
    rates = net(3 * torch.rand(3, *source).double())
    assert rates.shape == (3, *target) and 0 <= rates.min() and 0 < rates.max() <= 1
    rates.square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in net.parameters())
    assert net.input.weight.grad.any()


def test_event_input(engine: str) -> None:
    """Frames beyond time_step are not used; a recording that is too short is refused."""
    net = network(engine, event_input=True)
    frames = torch.rand(2, 15, 2, 9, 9).double().round().requires_grad_()
    rates = net(frames)
    assert torch.equal(rates, net(frames[:, :12]))
    gradient, = torch.autograd.grad(rates.square().sum(), frames)
    assert gradient[:, :12].any() and not gradient[:, 12:].any()
    with pytest.raises(ValueError, match="at least time_step = 12 frames"):
        net(frames[:, :11])


def test_statistics_belong_to_their_call(engine: str) -> None:
    """Two calls, two records, filled by their own passes."""
    net, (a, b) = network(engine), images(4).split(2)
    first, second = SpikeStatistics(), SpikeStatistics()
    rates = net(a, first)
    net(10 * b, second)
    assert first.neurons == [100, 150] and first.backward_rates is None
    assert not torch.equal(first.forward_rates, second.forward_rates)
    torch.testing.assert_close(first.forward_rates[-1], rates.mean())
    rates.square().sum().backward()
    assert (first.backward_rates > 0).all() and second.backward_rates is None


def test_equilibrium_of_a_network_that_can_be_solved(engine: str) -> None:
    """One linear layer with feedback: rates approach the fixed point a = clip((W x + b + F a) / kappa, 0, 1)."""
    net = FeedbackSNN(input=synapses.Linear(3, 4), feedback=synapses.Linear(4, 4, bias=False), neuron=IF(),
                      time_step=4000, engine=engine).double()
    with torch.no_grad():
        net.input.weight.uniform_(-1, 1)
        net.input.bias.fill_(0.8)
        net.feedback.weight.uniform_(-0.3, 0.3)
    x, rates = torch.randn(5, 3).double(), torch.zeros(5, 4).double()
    for _ in range(200):
        rates = ((net.input(x) + net.feedback(rates)) / 2).clamp(0, 1)
    torch.testing.assert_close(net(x).detach(), rates.detach(), rtol=0, atol=2e-3)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no engine 'quick'; choose one of auto, dense"):
        network("quick")
    with pytest.raises(ValueError, match="time_step_back must be at least 1"):
        network("dense", time_step_back=0)
    with pytest.raises(ValueError, match="does not lead from the last layer"):
        network("dense", feedback=synapses.Conv2d(6, 5, 3))(images())
    with pytest.raises(ValueError, match=r"expects an input of shape \(4, height, width\)"):
        network("dense", input=synapses.Conv2d(2, 5, 3))(images())
