"""Parts of one's own, and numbers set later: what simulation and gradient take for granted of them is tried first."""
import threading
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from modules import IF, LIF, FeedbackSNN, TernaryCouple, notices, synapses
from modules.engines.dense import DENSE
from modules.synapses import Synapse
from tests.oracle import exact_gradients

pytestmark = pytest.mark.filterwarnings("ignore:the event engine leaves this network to the dense engine")


class _Gained(Synapse):
    """With a weight and a gain."""

    def __init__(self, source: int, target: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(target, source) / source * 2)
        self.gain = nn.Parameter(torch.tensor(1.2))

    def output_shape(self, input_shape):
        return (len(self.weight),)


class Own(_Gained):
    """A linear map with a gain."""

    def current(self, spikes, weight, bias, output_shape):
        return F.linear(spikes, weight * self.gain)


class Centred(Synapse):
    """Computes its weight anew whenever it is read."""

    weight = property(lambda self: self.raw - self.raw.mean(1, keepdim=True) + 0.3)

    def __init__(self, source: int, target: int) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.rand(target, source))

    def output_shape(self, input_shape):
        return (len(self.raw),)

    def current(self, spikes, weight, bias, output_shape):
        return F.linear(spikes, weight)


def excites(source: int, target: int, **settings) -> Synapse:
    """A synapse whose spikes are enough to make the target spike."""
    synapse = synapses.Linear(source, target, **settings)
    nn.init.uniform_(synapse.weight, 0, 4 / source)
    return synapse


def network(middle: Synapse | None = None, feedback: Synapse | None = None, **settings) -> FeedbackSNN:
    layers = [middle or excites(5, 5), excites(5, 4)]
    return FeedbackSNN(input=excites(6, 5), layers=layers, feedback=feedback, **settings)


@pytest.mark.parametrize("kind, feedback", [(Own, False), (Own, True), (Centred, False), (Centred, True)])
def test_gradients_of_whatever_a_current_depends_on(kind, feedback) -> None:
    """Each counts once, also where the rates that it meets are the output that is differentiated."""
    net = network(feedback=kind(4, 5)) if feedback else network(kind(5, 5))
    net = FeedbackSNN(input=net.input, layers=net.layers, feedback=net.feedback, neuron=IF(v_threshold=0.7),
                      method="ide", tolerance=1e-14, max_sweeps=1000, time_step=40).double()
    x = torch.rand(3, 6, dtype=torch.float64)
    rates = net(x)
    gradient = torch.randn_like(rates)
    parameters = [*net.parameters()]
    found = torch.autograd.grad(rates, parameters, gradient)
    circuit, bound = net.bind(x)
    result = DENSE.simulate_forward(circuit, bound)
    exact = exact_gradients(circuit, bound, result.rates, circuit.masks(result.counts), gradient, parameters)
    assert all(t.any() for t in exact)
    for own, expected in zip(found, exact):
        torch.testing.assert_close(own, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("engine", ["dense", "event"])
def test_a_pruned_linear_synapse_is_trained(engine) -> None:
    torch.manual_seed(1)
    net, plain = network(engine=engine), network(engine=engine)
    plain.load_state_dict(net.state_dict())
    prune.l1_unstructured(net.layers[0], "weight", amount=0.3)
    mask = net.layers[0].weight_mask
    with torch.no_grad():
        plain.layers[0].weight.mul_(mask)
    x = torch.rand(8, 6)
    for own in (net, plain):
        own(x).square().sum().backward()
    assert (mask == 0).any() and plain.layers[0].weight.grad.any()
    assert torch.equal(net.layers[0].weight_orig.grad, plain.layers[0].weight.grad * mask)


class Line(Synapse):
    """A convolution along a line."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(64, 2, 3))

    def output_shape(self, input_shape):
        return 64, input_shape[1]

    def current(self, spikes, weight, bias, output_shape):
        return F.conv1d(spikes, weight, padding=1)


@pytest.mark.parametrize("build, shape", [
    (lambda **own: FeedbackSNN(input=Line(), layers=[synapses.Linear(64, 10)], **own), (2, 1)),
    (lambda **own: FeedbackSNN(input=Line(), **own), (2, 4)),
    (lambda **own: _with(network(**own), "bias", torch.tensor([0.5])), (6,)),
])
def test_what_the_fast_engine_does_not_know_is_left_to_the_dense_one(build, shape) -> None:
    """Layers without a geometry, a bias that is shared: the same results."""
    notices.GIVEN.clear()
    found = []
    for engine in ("dense", "auto"):
        torch.manual_seed(0)
        net = build(engine=engine)
        rates = net(torch.rand(3, *shape))
        rates.sum().backward()
        found.append([rates, *(p.grad for p in net.input.parameters())])
    assert found[0][1].any() and all(map(torch.equal, *found))


def test_a_window_that_nothing_reaches() -> None:
    net = FeedbackSNN(input=synapses.Conv2d(1, 2, 1), layers=[synapses.Conv2d(2, 2, 1, stride=3, padding=1)],
                      feedback=synapses.Conv2d(2, 2, 1, bias=False), engine="event")
    assert not net(torch.rand(2, 1, 1, 1)).any()


def _with(net: FeedbackSNN, name: str, value: Tensor) -> FeedbackSNN:
    """A network one of whose synapses has another tensor than it was made with."""
    setattr(net.layers[0], name, nn.Parameter(value))
    return net


@pytest.mark.parametrize("engine", ["dense", "event"])
def test_a_weight_of_another_size_is_an_error(engine) -> None:
    net = _with(network(engine=engine), "weight", torch.rand(1, 3))
    with pytest.raises(RuntimeError, match="shape"):
        net(torch.rand(2, 6))


def _current(function):
    """A synapse with another current."""
    def build() -> Synapse:
        own = type("Strange", (Synapse,), {"output_shape": _Gained.output_shape, "current": function})()
        own.weight, own.further = nn.Parameter(torch.rand(5, 5)), [nn.Parameter(torch.rand(5, 5))]
        own.norm, own.calls = nn.BatchNorm1d(5), []
        return own
    return build


class WrongTranspose(_Gained):
    current = Own.current

    def transpose(self, spikes, weight, input_shape):
        return 2 * (spikes @ weight) * self.gain


class Called(_Gained):
    current = Own.current

    def forward(self, spikes):
        return 0 * spikes


@pytest.mark.parametrize("build, words", [
    (_current(lambda self, s, w, b, shape: F.linear(s, w).relu() - s.square()), "no linear function of spikes"),
    (_current(lambda self, s, w, b, shape: F.dropout(F.linear(s, w), 0.5)), "another one when it is asked again"),
    (_current(lambda self, s, w, b, shape: self.calls.append(0) or F.linear(s, w) * len(self.calls)), "hold a state"),
    (_current(lambda self, s, w, b, shape: F.linear(s, w)[:, :1]), r"shape \(5,\), and it has \(1,\)"),
    (_current(lambda self, s, w, b, shape: F.linear(s, self.weight)), "depends on parameters that would get no grad"),
    (_current(lambda self, s, w, b, shape: F.linear(s, self.further[0])), "register the module of any other param"),
    (lambda: WrongTranspose(5, 5), "the transpose of the synapse 'layers.0' .WrongTranspose. is not that"),
    (lambda: Called(5, 5), "its own forward would never run"),
])
def test_currents_that_would_be_differentiated_as_others(build, words) -> None:
    net = network(build())
    with pytest.raises(ValueError, match=words):
        net(torch.rand(2, 6))


def test_a_norm_whose_numbers_stand_still_is_a_linear_map() -> None:
    """What is refused while it learns from spikes is an affine map afterwards."""
    net = network(_current(lambda self, s, w, b, shape: self.norm(F.linear(s, w)))())
    with pytest.raises(ValueError, match="no linear function"):
        net(torch.rand(4, 6))
    net.layers[0].norm.reset_running_stats()
    assert net.eval()(torch.rand(4, 6)).shape == (4, 4)


@pytest.mark.parametrize("name, value, words", [
    ("time_step", 0, "time_step must be at least 1, and whole, not 0"),
    ("time_step", 2.5, "time_step must be at least 1, and whole, not 2.5"),
    ("time_step_back", -3, "time_step_back must be at least 1"),
    ("tolerance", 0, "tolerance must be positive"),
    ("method", "bptt", "there is no method 'bptt'"),
    ("couple", TernaryCouple(v_threshold=1e-50), "the threshold 1e-50 is 0 or infinite in torch.float32"),
])
def test_numbers_set_later_are_checked_like_the_first_ones(name, value, words) -> None:
    net = network()
    setattr(net, name, value)
    with pytest.raises(ValueError, match=words):
        net(torch.rand(2, 6))


def test_dropout_set_later_is_checked() -> None:
    for wrong in (-0.5, 1.0, float("nan")):
        with pytest.raises(ValueError, match="dropout must lie in"):
            network().layers[0].dropout = wrong


def test_a_couple_leaks_as_the_neuron_that_stands_there_now() -> None:
    net, x = network(neuron=IF()), torch.rand(4, 6)
    net.neuron = LIF(leak=0.75)
    other = network(neuron=LIF(leak=0.75))
    other.load_state_dict(net.state_dict())
    for own in (net, other):
        own(x).sum().backward()
    assert torch.equal(net.layers[1].weight.grad, other.layers[1].weight.grad)
    assert net.bind(x)[0].couple == replace(TernaryCouple(), leak=0.75)


@pytest.mark.parametrize("keys", [torch.arange(4).int(), torch.arange(4.0), torch.arange(1), torch.zeros(4, 1).long()])
def test_keys_must_be_one_number_for_each_sample(keys) -> None:
    net = network(synapses.Linear(5, 5, dropout=0.5))
    with pytest.raises(ValueError, match=r"keys must be int64 of shape \(4,\)"):
        net(torch.rand(4, 6), keys=keys)


def test_number_formats() -> None:
    """More steps than a format counts, synapses in another one, and whole numbers are refused."""
    with pytest.raises(ValueError, match="torch.bfloat16 counts no more than 256 spikes, and there are 300 steps"):
        network(time_step=300).bfloat16()(torch.rand(2, 6).bfloat16())
    with pytest.raises(ValueError, match="and there are 257 steps: use float32"):
        network(time_step_back=257).bfloat16()(torch.rand(2, 6).bfloat16())
    network(time_step_back=257, method="ide").bfloat16()(torch.rand(2, 6).bfloat16())
    with pytest.raises(ValueError, match="the weight of the synapse 'layers.0' is in torch.float64 and the input in"):
        network(synapses.Linear(5, 5).double())(torch.rand(2, 6))
    with pytest.raises(ValueError, match="floating-point numbers, not torch.int64"):
        FeedbackSNN(input=synapses.AvgPool2d(1))(torch.ones(2, 1, 3, 3).long())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_ide_in_half_precision(dtype) -> None:
    """As exact as the format, also where squares leave it."""
    torch.manual_seed(0)
    net, found = network(feedback=synapses.Linear(4, 5, max_norm=0.5), method="ide", tolerance=0.02), []
    x, scale = torch.rand(8, 6), 500.0
    for own in (net, net.to(dtype)):
        own.zero_grad()
        (scale * own(x.to(next(own.parameters()).dtype)).sum()).backward()
        found.append(own.layers[1].weight.grad.float().clone())
    assert (found[0] - found[1]).norm() < 0.1 * found[0].norm()


def test_gradients_of_gradients_are_refused() -> None:
    """A penalty on the gradient would otherwise be left out without a word."""
    net, x = network(), torch.rand(2, 6, requires_grad=True)
    with pytest.raises(ValueError, match="create_graph=True, as gradient penalties"):
        torch.autograd.grad(net(x).sum(), x, create_graph=True)


def test_parameters_that_are_swapped_for_a_call() -> None:
    """A weight may be; a gain, which the synapse itself reads, would be another one on the way back."""
    net, x = network(Own(5, 5)), torch.rand(4, 6)
    weights = {name: nn.Parameter(p * 2) for name, p in net.named_parameters() if name != "layers.0.gain"}
    torch.func.functional_call(net, weights, x).sum().backward()
    assert weights["layers.0.weight"].grad.any()
    rates = torch.func.functional_call(net, {"layers.0.gain": nn.Parameter(torch.tensor(2.0))}, x)
    with pytest.raises(ValueError, match="the synapse 'layers.0' has other parameters now than in the forward pass"):
        rates.sum().backward()


@pytest.mark.parametrize("make, words", [
    (lambda: network(nn.Linear(5, 5)), "built from synapses of modules.synapses, not from Linear"),
    (lambda: FeedbackSNN(input=synapses.Linear(2, 2), layers=[nn.ReLU()]), "not from ReLU"),
    (lambda: network(neuron=IF), "neuron must be a LIF with its numbers"),
    (lambda: network(couple=TernaryCouple), "couple must be a TernaryCouple with its numbers"),
])
def test_parts_of_another_kind(make, words) -> None:
    with pytest.raises(TypeError, match=words):
        make()


@pytest.mark.parametrize("make", [
    lambda: synapses.Conv2d(2, 3, (3, 5)), lambda: synapses.Conv2d(2, 3, 3, padding="same"),
    lambda: synapses.Conv2d(2, 3, 3, stride=0), lambda: synapses.AvgPool2d(0), lambda: synapses.AvgPool2d(2, stride=0)])
def test_windows_are_square_and_whole(make) -> None:
    with pytest.raises(ValueError, match="must be one whole number of at least [01], for both axes, not"):
        make()


class Graded(LIF):
    """Fires twice where its potential is high."""

    def step_(self, potential: Tensor, current: Tensor, spikes: Tensor) -> None:
        super().step_(potential, current, spikes)
        spikes += potential > 0


class Adds(LIF):
    """Writes spikes only where there are any."""

    def step_(self, potential: Tensor, current: Tensor, spikes: Tensor) -> None:
        potential += current
        spikes[potential >= 1] = 1
        potential -= 2 * spikes


class Rebinds(LIF):
    """Computes a new potential, which nobody sees."""

    def step_(self, potential: Tensor, current: Tensor, spikes: Tensor) -> None:
        potential = potential + current
        torch.ge(potential, self.v_threshold, out=spikes)


class Miscounts(TernaryCouple):
    def step_(self, potential: Tensor, current: Tensor, spikes: Tensor, negative: Tensor) -> Tensor:
        super().step_(potential, current, spikes, negative)
        return spikes.sum()


class Adapts(LIF):
    """Has a threshold for all units of all layers, which stays as it is when a batch ends."""

    def step_(self, potential: Tensor, current: Tensor, spikes: Tensor) -> None:
        super().step_(potential, current, spikes)
        object.__setattr__(self, "v_threshold", self.v_threshold + float(spikes.mean()))


class Escapes(LIF):
    """Fires at random."""

    def step_(self, potential: Tensor, current: Tensor, spikes: Tensor) -> None:
        potential += current
        spikes.copy_(torch.rand_like(potential) < potential)
        potential.sub_(spikes, alpha=self.quantum)


@pytest.mark.parametrize("parts, words", [
    ({"neuron": Graded(leak=0.9)}, "a step of Graded does not overwrite all spikes, in place, by one of 0, 1"),
    ({"neuron": Adds(leak=0.9)}, "a step of Adds does not overwrite all spikes"),
    ({"neuron": Rebinds(leak=0.9)}, "a step of Rebinds leaves the potential as it was"),
    ({"couple": Miscounts()}, "a step of Miscounts returns that .* units fired, and .* did")])
def test_neurons_whose_spikes_would_be_counted_as_others(parts, words) -> None:
    with pytest.raises(ValueError, match=words):
        network(**parts)(torch.rand(2, 6))


def test_a_neuron_that_keeps_a_state_of_its_own() -> None:
    net = network(neuron=Adapts(leak=0.9))
    with pytest.warns(UserWarning, match="a Adapts changes at every step"):
        net.bind(torch.rand(2, 6))
    assert net.neuron.v_threshold == 1  # it was a copy that was tried


def test_a_random_neuron_is_tried_without_its_random_numbers() -> None:
    net, state = network(neuron=Escapes(leak=0.9)), torch.get_rng_state()
    net.bind(torch.rand(2, 6, generator=torch.Generator()))
    assert torch.equal(torch.get_rng_state(), state)


class Coarse(TernaryCouple):
    """No dataclass, and with a number of its own."""

    def __init__(self, *, share: float) -> None:
        super().__init__(v_threshold=0.25)
        object.__setattr__(self, "share", share)

    def step_(self, potential: Tensor, current: Tensor, spikes: Tensor, negative: Tensor) -> Tensor:
        return super().step_(potential, current * self.share, spikes, negative)


def test_a_couple_keeps_what_is_its_own() -> None:
    """Also where it gets the leak of the neurons."""
    net = network(couple=Coarse(share=0.5), neuron=LIF(leak=0.75))
    for leak in (0.75, 0.5):
        net.neuron = LIF(leak=leak)
        couple = net.bind(torch.rand(2, 6))[0].couple
        assert type(couple) is Coarse and (couple.share, couple.v_threshold, couple.leak) == (0.5, 0.25, leak)


class Flat(LIF):
    """Writes to a copy of potentials whose layout is not that of their numbers."""

    def step_(self, potential: Tensor, current: Tensor, spikes: Tensor) -> None:
        flat = potential.flatten()
        flat += current.flatten()
        torch.ge(potential, self.v_threshold, out=spikes)


class Held(LIF):
    """Forgets at every step, and holds what cannot be copied, and a list of what it saw."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "lock", threading.Lock())

    def step_(self, potential: Tensor, current: Tensor, spikes: Tensor) -> None:
        potential.copy_(current)
        torch.ge(potential, self.v_threshold, out=spikes)
        SEEN.append(len(spikes))


SEEN: list[int] = []


def test_neurons_are_tried_as_they_are_simulated() -> None:
    """In the layout of images, and once, whatever they hold."""
    image = FeedbackSNN(input=synapses.Conv2d(1, 2, 3), neuron=Flat(leak=0.9))
    with pytest.raises(ValueError, match="a step of Flat leaves the potential as it was"):
        image(torch.rand(2, 1, 4, 5))
    net = network(neuron=Held(leak=0.9), time_step=3)
    for _ in range(2):
        net(torch.rand(20, 6))
    assert SEEN[:2] == [13, 13] and SEEN[2:] == [20] * 3 * 3 * 2


def test_a_neuron_that_holds_a_parameter() -> None:
    neuron = LIF(leak=0.9)
    object.__setattr__(neuron, "gain", nn.Parameter(torch.ones(())))
    with pytest.raises(ValueError, match="a LIF holds parameters, which would get no gradient"):
        network(neuron=neuron)(torch.rand(2, 6))


@pytest.mark.parametrize("edit, words", [
    (lambda step: lambda own, u, current, s: (step(own, u, current, s), s.add_(s)), "does not overwrite all spikes"),
    (lambda step: lambda own, u, current, s: step(own, u, current.mul_(0.5), s), "changes the current that it is")])
def test_edits_of_the_library_s_neurons(edit, words, monkeypatch) -> None:
    """As of one who edits their file."""
    monkeypatch.setattr(LIF, "step_", edit(LIF.step_))
    with pytest.raises(ValueError, match=words):
        network(neuron=LIF(leak=0.9), engine="dense")(torch.rand(2, 6))


def test_a_step_of_one_neuron_alone() -> None:
    """The event engine leaves it to the dense one, though an equal neuron is as its numbers say."""
    neuron = LIF(leak=0.9)
    network(neuron=LIF(leak=0.9), engine="event")(torch.rand(2, 6))
    object.__setattr__(neuron, "step_", lambda potential, current, spikes: spikes.copy_(potential.add_(current) > 1e9))
    with pytest.warns(UserWarning, match="a step of LIF is not what its numbers say"):
        assert not network(neuron=neuron, engine="event")(torch.rand(2, 6)).any()
