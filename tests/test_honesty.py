"""Nothing is simulated as something else: what a network holds beside the library's own is honoured or refused."""
import copy
import io
import os
import pickle
import subprocess
import sys
import warnings
from dataclasses import dataclass

import pytest
import torch
import torch.multiprocessing
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from models import AlexNetF, LeNet
from modules import IF, LIF, FeedbackSNN, SpikeStatistics, TernaryCouple, engines, notices, synapses
from modules.engines.dense import DenseEngine
from modules.engines.event import costs
from tests.processes import REPOSITORY, environment

GRID = 2.0**-6


@pytest.fixture(autouse=True)
def warn_anew() -> None:
    notices.GIVEN.clear()


@dataclass(frozen=True, kw_only=True)
class HardReset(LIF):
    """Resets to ``u_rest``, whatever the potential was."""

    def step_(self, potential: Tensor, current: Tensor, spikes: Tensor) -> None:
        potential.mul_(self.leak).add_(current)
        torch.ge(potential, self.v_threshold, out=spikes)
        potential.masked_fill_(spikes.bool(), self.u_rest)


@dataclass(frozen=True, kw_only=True)
class Eager(TernaryCouple):
    """Fires at half of its threshold."""

    def step_(self, potential: Tensor, current: Tensor, spikes: Tensor, negative: Tensor) -> Tensor:
        return super().step_(potential, 2 * current, spikes, negative)


class Gained(synapses.Synapse):
    """A 3x3 convolution times a gain that is trained; a window if ``window`` says so."""

    def __init__(self, source: int, target: int, told: bool = True, forgets: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter((torch.randn(target, source, 3, 3) / GRID / 4).round() * GRID)
        self.bias = nn.Parameter((torch.rand(target) / GRID).round() * GRID)
        self.gain, self.told, self.forgets = nn.Parameter(torch.tensor(1.5)), told, forgets

    def output_shape(self, input_shape):
        return len(self.weight), *input_shape[1:]

    def current(self, spikes, weight, bias, output_shape):
        return F.conv2d(spikes, weight * self.gain, bias, 1, 1)

    def window(self, weight, input_shape, output_shape):
        if not self.told:
            return None
        gain = 1 if self.forgets else self.gain.detach()
        return synapses.Window(kernel=(3, 3), padding=1, weight=gain * weight.permute(2, 3, 1, 0))


def network(engine: str = "event", **changes) -> FeedbackSNN:
    """A small network in float32 on dyadic weights."""
    torch.manual_seed(0)
    parts = {"input": synapses.Conv2d(2, 4, 3), "layers": [synapses.Conv2d(4, 6, 3)], "time_step": 12,
             "couple": TernaryCouple(v_threshold=2**-5), "time_step_back": 20, **changes}
    net = FeedbackSNN(**parts, engine=engine)
    with torch.no_grad():
        for synapse in (net.input, *net.layers):
            synapse.stored_weight.copy_((synapse.stored_weight / GRID).round() * 4 * GRID)
            synapse.bias.copy_((torch.rand_like(synapse.bias) / GRID).round() * GRID)
    return net


def images() -> Tensor:
    return (torch.randn(3, 2, 7, 9, generator=torch.Generator().manual_seed(1)) / GRID).round() * GRID


def outcome(net: FeedbackSNN) -> list[Tensor]:
    """Rates and gradients."""
    net.zero_grad()
    rates = net(images())
    (rates * (rates.detach() / GRID).round() * GRID).sum().backward()
    return [rates.detach(), *(p.grad.clone() for p in net.parameters())]


def same_as_dense(net: FeedbackSNN) -> bool:
    found = outcome(net)
    net.engine = "dense"
    assert found[0].any() and all(g.any() for g in found[1:])
    return all(map(torch.equal, found, outcome(net)))


@pytest.mark.parametrize("changes, name", [
    ({"neuron": HardReset(leak=0.75)}, "HardReset"), ({"couple": Eager(v_threshold=2**-5)}, "Eager")])
def test_neurons_of_ones_own_run_on_the_dense_engine(changes, name) -> None:
    """The fast engine takes four numbers from a neuron, which are not all of this one: it says so once."""
    net = network(**changes)
    with pytest.warns(UserWarning, match=f"event engine leaves .* dense engine: it does not know neurons of type {name}"
                      ) as caught:
        assert same_as_dense(net)
    assert len(caught) == 1
    plain = network(neuron=LIF(leak=0.75) if name == "HardReset" else IF())
    assert not torch.equal(outcome(net)[1], outcome(plain)[1])


def test_a_window_of_ones_own_is_simulated_by_events() -> None:
    """Bit for bit as dense; backward too."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same_as_dense(network(layers=[Gained(4, 6)]))


@pytest.mark.parametrize("own, words", [
    (Gained(4, 6, told=False), "synapses of type Gained, which define no window"),
    (Gained(4, 6, forgets=True), "the window of the synapse Gained says something else")])
def test_what_is_no_window_is_not_taken_for_one(own, words) -> None:
    """Nor is one that is not that of the current, as of a synapse that forgets its gain."""
    with pytest.warns(UserWarning, match=words) as caught:
        assert same_as_dense(network(layers=[own]))
    assert len(caught) == 1


def test_a_method_put_on_one_synapse_is_noticed() -> None:
    net = network()
    plain = net.layers[0].current
    net.layers[0].current = lambda *arguments: 2 * plain(*arguments)
    with pytest.warns(UserWarning, match="has another 'current' than its class"):
        assert same_as_dense(net)


@pytest.mark.parametrize("method", ["spide", "ide"])
@pytest.mark.parametrize("engine", ["dense", "event"])
def test_further_parameters_get_their_gradient(engine, method) -> None:
    """dL/dgain = <dL/dW, W> / gain, for a gain that scales a weight."""
    net = network(engine, layers=[Gained(4, 6)], method=method).double()
    outcome_ = dict(zip(["rates", *(name for name, _ in net.named_parameters())], outcome_of(net)))
    expected = (outcome_["layers.0.weight"] * net.layers[0].weight).sum() / net.layers[0].gain
    torch.testing.assert_close(outcome_["layers.0.gain"], expected.detach())
    net.layers[0].gain.requires_grad_(False)
    net.zero_grad()
    net(images().double()).sum().backward()
    assert net.layers[0].gain.grad is None


def test_an_own_product_for_the_weight_leaves_the_gain_its_gradient() -> None:
    """A faster ``parameter_gradients`` of weight and bias is no reason to forget further parameters."""
    class Faster(synapses.Synapse):
        output_shape, current, window = Gained.output_shape, Gained.current, Gained.window

        def parameter_gradients(self, source, weight, bias, error, wanted):
            return super().parameter_gradients(source, weight, bias, error, wanted)

    plain = network("dense", layers=[Gained(4, 6)]).double()
    faster = copy.deepcopy(plain)
    faster.layers[0].__class__ = Faster
    for found, expected in zip(outcome_of(faster), outcome_of(plain), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_current_that_autograd_does_not_see_is_no_silence() -> None:
    """Its weight would never learn."""
    class CutOff(synapses.Synapse):
        output_shape, window = Gained.output_shape, Gained.window
        current = torch.no_grad()(Gained.current)

    net = network("dense", layers=[Gained(4, 6)]).double()
    net.layers[0].gain.requires_grad_(False)
    net.layers[0].__class__ = CutOff
    with pytest.raises(RuntimeError, match="does not require grad"):
        net(images().double()).sum().backward()


def test_dropout_that_changes_before_the_backward_pass() -> None:
    """What a call holds fixed is fixed: its mask, and what that multiplies with."""
    net = network("event", layers=[synapses.Conv2d(4, 6, 3, dropout=0.5)])
    circuit, _ = net.bind(images())
    net.layers[0].dropout = 0.25
    connection = circuit.connections[1]
    assert connection.dropout_scale == connection.dropout.max() == 2


def outcome_of(net: FeedbackSNN) -> list[Tensor]:
    net.zero_grad()
    rates = net(images().double())
    rates.square().sum().backward()
    return [rates.detach(), *(p.grad.clone() for p in net.parameters())]


def test_changed_parameters_are_noticed_before_the_backward_pass() -> None:
    """As by any autograd function: a gain that was changed in place is not the one that was simulated with."""
    net = network(layers=[Gained(4, 6)])
    rates = net(images())
    with torch.no_grad():
        net.layers[0].gain.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        rates.sum().backward()


class Counting(DenseEngine):
    """An engine of one's own."""

    name = "counting"

    def __init__(self) -> None:
        self.calls = 0

    def simulate_forward(self, circuit, x):
        self.calls += 1
        return super().simulate_forward(circuit, x)


def test_engine_objects() -> None:
    """An object is an engine everywhere: called, named, copied, pickled, registered; a module is refused, in words."""
    model = LeNet(widths=(2, 3, 4), engine=Counting(), time_step=4)
    model(torch.rand(2, 1, 28, 28))
    assert model.network.engine.calls == 1 and model.engine_on(torch.device("cpu")) == "counting"
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin(torch.rand(2, 1, 28, 28))
        assert twin.network.engine.calls == 2 and model.network.engine.calls == 1
    for name in ("auto", "dense", "event", "cuda:bf16"):
        engine = engines.select(name, torch.device("cpu"))
        assert copy.deepcopy(engine).name == engine.name == pickle.loads(pickle.dumps(engine)).name
    from modules.engines import dense
    for wrong, words in ((dense, "the module modules.engines.dense is no engine"), (3, "a int is no engine"),
                         (object(), "lacks name, simulate_forward, simulate_backward")):
        with pytest.raises(TypeError, match=words):
            FeedbackSNN(input=synapses.Linear(2, 2), engine=wrong)


def test_registered_engines_go_by_their_name() -> None:
    engine = Counting()
    engines.register(engine)
    try:
        network("counting")(images())
        assert engine.calls == 1
        with pytest.raises(ValueError, match="there is an engine 'counting' already"):
            engines.register(Counting())
        with pytest.raises(ValueError, match="choose one of auto, dense, event, cuda, counting"):
            network("quick")
    finally:
        engines._REGISTRY.pop("counting")


@pytest.mark.parametrize("module, program, words", [
    ("numba", "engine='auto'", "takes dense, which is several times slower, in place of event: numba is installed, but "
                               "cannot be imported (ImportError: it needs an older NumPy)"),
    ("numba", "engine='event'", "the event engine leaves this network to the dense engine: numba is installed, but"),
    ("triton", "engine='cuda'", "triton is installed, but cannot be imported (ImportError: it needs an older NumPy)"),
])
def test_libraries_that_are_installed_but_unusable(module, program, words, tmp_path) -> None:
    """The reason is given; the dense engine runs."""
    (tmp_path / f"{module}.py").write_text("raise ImportError('it needs an older NumPy')")
    code = ("import torch; from modules import FeedbackSNN, synapses\n"
            f"print(FeedbackSNN(input=synapses.Linear(4, 3), {program})(torch.ones(2, 4)).shape)")
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
                          env=environment(PYTHONPATH=path, TRITON_INTERPRET="1"))
    assert "torch.Size([2, 3])" in done.stdout and words in done.stderr, done.stderr


@pytest.mark.parametrize("engine", ["dense", "event"])
def test_pruning_and_old_weight_normalisation(engine) -> None:
    """They compute the weight in forward pre-hooks, which run before it is read: at every call, with gradients."""
    net = network(engine).double()
    prune.l1_unstructured(net.layers[0], "weight", amount=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(net.input, "weight")
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    for _ in range(3):
        before = net.layers[0].weight.detach().clone(), net.input.weight.detach().clone()
        optimizer.zero_grad()
        net(images().double()).square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in net.parameters())
        optimizer.step()
        net(images().double())
        assert (net.layers[0].weight == 0).double().mean() >= 0.5
        assert not torch.equal(net.layers[0].weight, before[0]) and not torch.equal(net.input.weight, before[1])
        torch.testing.assert_close(net.layers[0].weight, net.layers[0].weight_orig * net.layers[0].weight_mask)


@pytest.mark.parametrize("register, words", [
    (lambda s: s.register_forward_hook(lambda *_: None), "forward and backward hooks would never run"),
    (lambda s: s.register_full_backward_hook(lambda *_: None), "forward and backward hooks would never run"),
    (lambda s: s.register_forward_pre_hook(lambda module, inputs: (1,)), "changes what the synapse is called with")])
def test_hooks_that_could_not_run_are_refused(register, words) -> None:
    net = network()
    register(net.layers[0])
    with pytest.raises(ValueError, match=f"synapse Conv2d.*{words}|{words}"):
        net(images())


def _rates(net: nn.Module, queue) -> None:
    queue.put(net(torch.ones(1, 3, 32, 32)).detach().numpy())


def test_whole_networks_are_saved_copied_and_sent() -> None:
    """Also AlexNet-F, whose feedback weight is parametrized: torch.save, pickle, a spawned process."""
    net = AlexNetF(widths=(4, 6, 8, 8, 6), time_step=6).eval()
    x = torch.ones(1, 3, 32, 32)
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    twin = torch.load(buffer, weights_only=False)
    assert torch.equal(twin(x), net(x)) and list(twin.state_dict()) == list(net.state_dict())
    twin(x).sum().backward()
    assert [name for name, _ in twin.named_parameters()] == [name for name, _ in net.named_parameters()]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_rates, args=(net, queue))
    process.start()
    assert torch.equal(torch.from_numpy(queue.get(timeout=100)), net(x).detach())
    process.join()


@pytest.mark.parametrize("engine", ["dense", "event"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("leak", [1 - 1e-8, 1 - 3e-8, 1 - 6e-8, 1 - 1e-15, 1 - 2**-53, 0.5, 1e-30])
def test_whether_a_neuron_leaks_is_decided_once(engine, dtype, leak) -> None:
    """A leak that rounds to 1 is none; a rate of 1 is 1, with every leak: the number format decides, everywhere."""
    net = FeedbackSNN(input=synapses.Linear(1, 1, bias=False), neuron=LIF(leak=leak), time_step=20, engine=engine)
    net = net.to(dtype)
    with torch.no_grad():
        net.input.weight.fill_(3)
    rates = net(torch.ones(1, 1, dtype=dtype))
    assert abs(rates.item() - 1) < 1e-6
    rates.backward(torch.ones_like(rates))
    assert net.input.weight.grad.item() == 0  # as the unit fired at every step


@pytest.mark.parametrize("engine", ["dense", "event"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(engine, bad) -> None:
    """Thresholds would hide them: in the input, in any weight, in the gradient; the sentence says which and where."""
    net, x = network(engine), images()
    rates = net(x)
    gradient = torch.zeros_like(rates)
    gradient[1, 2, 3, 4] = bad
    with pytest.raises(ValueError, match=r"gradient of the loss for the firing rates .*1 of .*at \(1, 2, 3, 4\)"):
        rates.backward(gradient)
    with torch.no_grad():
        net.layers[0].bias[5] = bad
    with pytest.raises(ValueError, match=r"bias of the synapse 'layers.0' .*1 of 6.*at \(5,\)"):
        net(x)
    net, x[2, 0, 1, 1] = network(engine, event_input=False), bad
    with pytest.raises(ValueError, match=r"the input holds numbers that are not finite .*at \(2, 0, 1, 1\)"):
        net(x)


@pytest.mark.parametrize("engine", ["dense", "event"])
def test_autocast_leaves_the_simulation_alone(engine) -> None:
    """Both phases in the network's own number format, also behind a layer whose output is in bfloat16."""
    net, before = network(engine), nn.Conv2d(2, 2, 3, padding=1)
    expected = outcome(net)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for found, own in zip(outcome(net), expected):
            assert found.dtype == torch.float32 and torch.equal(found, own)
        rates = net(before(images()))
        rates.sum().backward()
    assert rates.dtype == torch.float32 and before.weight.grad.any()
    with pytest.raises(ValueError, match="the input is in torch.float64 and the network's weights in torch.float32"):
        net(images().double())


@pytest.mark.parametrize("make, words", [
    (lambda: LIF(leak=0.5, v_threshold=torch.tensor(1.0)), "v_threshold must be a plain number, not a Tensor"),
    (lambda: IF(v_threshold=nn.Parameter(torch.tensor(1.0))), "neurons are not trained"),
    (lambda: IF(v_threshold=float("inf")), "threshold must be positive"),
    (lambda: TernaryCouple(u_rest=float("nan")), "must be below the threshold"),
    (lambda: network(method="bptt"), "there is no method 'bptt'; choose one of spide, ide"),
    (lambda: network(tolerance=0), "tolerance must be positive"),
    (lambda: network(max_sweeps=0), "max_sweeps must be at least 1"),
    (lambda: network("cuda:fp8"), "there is no precision 'fp8'; choose one of fp32"),
    (lambda: network("auto:fp8"), "there is no precision 'fp8'; choose one of fp32"),
])
def test_what_makes_no_sense_is_refused(make, words) -> None:
    with pytest.raises(ValueError, match=words):
        make()


# What is the user's own


@dataclass(frozen=True, kw_only=True)
class Scaling(LIF):
    """Takes a part of the current, which it changes in place."""

    def step_(self, potential, current, spikes):
        current *= 0.5
        super().step_(potential, current, spikes)


def test_a_neuron_may_change_the_current_that_it_is_given() -> None:
    """The constant current of a layer is the same at every step, whatever a step did to it; so is a gradient."""
    net = network("dense", neuron=Scaling(leak=0.75), couple=Changing(v_threshold=2**-5), layers=[])
    halved = network("dense", neuron=LIF(leak=0.75), couple=TernaryCouple(v_threshold=2**-5), layers=[])
    with torch.no_grad():
        for parameter in halved.parameters():
            parameter *= 0.5
    gradient = torch.full_like(net(images()), 0.25)
    for own, given in ((net, gradient), (halved, gradient / 2)):
        rates = own(images())
        rates.backward(given)
    assert torch.equal(net(images()), halved(images())) and (gradient == 0.25).all()
    assert torch.equal(net.input.weight.grad, halved.input.weight.grad) and net.input.weight.grad.any()


@dataclass(frozen=True, kw_only=True)
class Changing(TernaryCouple):
    """Takes a half of the current, which it changes in place."""

    def step_(self, potential, current, spikes, negative):
        current *= 0.5
        return super().step_(potential, current, spikes, negative)


def test_another_current_of_one_synapse_alone_has_its_own_gradient() -> None:
    """As of a network with doubled weights, also for the layers before; a wrong method put there is refused."""
    net, doubled = (network("dense", method="ide").double() for _ in range(2))
    plain = net.layers[0].current
    net.layers[0].current = lambda spikes, weight, bias, shape: plain(spikes, 2 * weight, bias, shape)
    with torch.no_grad():
        doubled.layers[0].weight *= 2
    found, expected = outcome_of(net), outcome_of(doubled)
    names = ["rates", *(name for name, _ in net.named_parameters())]
    for name, own, right in zip(names, found, expected):
        torch.testing.assert_close(own, right * (2 if name == "layers.0.weight" else 1), msg=name)
    net.layers[0].transpose = doubled.layers[0].transpose
    with pytest.raises(ValueError, match="transpose of the synapse 'layers.0' .* is not that of its current"):
        net(images().double())


class Wrong(synapses.Synapse):
    """A 3x3 convolution with one thing wrong, or a buffer that may become so."""

    def __init__(self, wrong):
        super().__init__()
        self.wrong, self.weight = wrong, nn.Parameter(torch.rand(4, 2, 3, 3))
        if wrong == "buffer":
            self.register_buffer("mask", torch.ones(4, 2, 3, 3))

    @property
    def bias(self):
        return self.offset if self.wrong == "property" else None

    def output_shape(self, input_shape):
        return 4, *input_shape[1:]

    def current(self, spikes, weight, bias, output_shape):
        if self.wrong == "nan":
            weight = weight / (weight - weight)
        if self.wrong == "clamp":
            spikes = spikes.clamp(-1, 3)
        if self.wrong == "square":
            return F.conv2d(spikes, weight, None, 1, 1).square()
        if self.wrong == "buffer":
            weight = weight * self.mask
        return F.conv2d(spikes, weight, None, 1, 1)

    def parameter_gradients(self, source, weight, bias, error, wanted):
        found, _ = synapses.Synapse.parameter_gradients(self, source, weight, None, error, (wanted[0], False))
        return (found / 3 if self.wrong == "gradient" and found is not None else found), None


@pytest.mark.parametrize("wrong, kind, words", [
    ("property", AttributeError, "offset"), ("nan", ValueError, "is not finite"),
    ("clamp", ValueError, "no linear function"), ("gradient", ValueError, "parameter_gradients .* are not those of")])
def test_a_wrong_synapse_is_refused(wrong, kind, words) -> None:
    """A typo in a property is no absent bias; nothing else of an own synapse is believed that can be tried."""
    net = FeedbackSNN(input=Wrong(wrong), engine="dense")
    with pytest.raises(kind, match=words):
        net(images())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_formats_are_tried_and_counted_too(dtype) -> None:
    """What is not linear is refused there as elsewhere; many spikes of a layer are counted."""
    with pytest.raises(ValueError, match="no linear function"):
        FeedbackSNN(input=Wrong("square"), engine="dense").to(dtype)(images().to(dtype))
    net = FeedbackSNN(input=synapses.Linear(1, 70_000), time_step=4, time_step_back=4, engine="dense").to(dtype)
    with torch.no_grad():
        net.input.weight.fill_(1)
    statistics = SpikeStatistics()
    (net(torch.ones(1, 1, dtype=dtype), statistics) * 1e3).sum().backward()
    assert statistics.backward_rates.item() == statistics.saturated.item() == 1


def test_a_buffer_belongs_to_one_call() -> None:
    """A buffer that was changed, or swapped, before the backward pass is refused as a parameter is."""
    net = FeedbackSNN(input=Wrong("buffer"), engine="dense")
    net(images()).sum().backward()
    rates = net(images())
    net.input.mask[0] = 0
    with pytest.raises(ValueError, match="'input' has other buffers now"):
        rates.sum().backward()
    rates = torch.func.functional_call(net, {"input.mask": torch.zeros(4, 2, 3, 3)}, images())
    with pytest.raises(ValueError, match="'input' has other buffers now"):
        rates.sum().backward()


@pytest.mark.parametrize("engine", ["dense", "event"])
def test_inference_mode(engine) -> None:
    """Own synapses, whose transpose autograd finds, are simulated there as anywhere."""
    net = network(engine, layers=[Gained(4, 6)])
    with torch.no_grad():
        expected = net(images())
    with torch.inference_mode():
        assert torch.equal(net(images()), expected)


@pytest.mark.parametrize("feedback", [None, synapses.Conv2d(32, 16, 3, bias=False)])
def test_threads_of_the_event_engine_follow_no_gradient(feedback, monkeypatch) -> None:
    """Products of whole tensors with a gain that is trained, in several threads."""
    before = torch.get_num_threads()
    monkeypatch.setattr(costs, "break_even", lambda *_, **__: 0.0)
    net = FeedbackSNN(input=synapses.Conv2d(2, 16, 3), layers=[Gained(16, 32)], feedback=feedback, engine="event")
    nn.init.constant_(net.input.bias, 1.5)
    try:
        torch.set_num_threads(2)
        rates = net(torch.rand(8, 2, 7, 9))
    finally:
        torch.set_num_threads(before)
    rates.sum().backward()
    assert rates.any() and net.layers[0].gain.grad is not None


def test_what_is_no_part_or_argument() -> None:
    """Parts set later, statistics, a shape that is none, a batch of none."""
    net = network("dense")
    with pytest.raises(TypeError, match="given by name, keys="):
        net(images(), torch.arange(3))
    statistics = SpikeStatistics()
    net(images()[:0], statistics).sum().backward()
    assert statistics.neurons == [4 * 63, 6 * 63]
    net.neuron = LIF
    with pytest.raises(TypeError, match="neuron must be a LIF"):
        net(images())
    net = network("dense")
    net.layers[0] = nn.Conv2d(4, 6, 3)
    with pytest.raises(TypeError, match="built from synapses"):
        net(images())
    net.layers[0] = Gained(4, 6)
    net.layers[0].output_shape = lambda shape: [6, 7, 9]
    with pytest.raises(TypeError, match="must be a tuple"):
        net(images())
    with pytest.raises(ValueError, match="at most half of kernel_size"):
        synapses.AvgPool2d(2, padding=2)
    with pytest.raises(ValueError, match="less u_rest, .* infinite in torch.float32"):
        network("dense", neuron=IF(v_threshold=2e38))(images())


# Edits of the library itself, as researchers make them


def hard_reset(self, potential, current, spikes):
    potential.mul_(self.leak).add_(current)
    torch.ge(potential, self.v_threshold, out=spikes)
    potential.masked_fill_(spikes.bool(), 0.0)


def test_an_edited_step_is_not_ignored(monkeypatch) -> None:
    """Loops with a step of their own leave a network to the dense engine, which takes the edited one."""
    net = network(neuron=LIF(leak=0.75))
    before = outcome(net)[0]
    monkeypatch.setattr(LIF, "step_", hard_reset)
    with pytest.warns(UserWarning, match="a step of LIF is not what its numbers say"):
        assert same_as_dense(net) and not torch.equal(outcome(net)[0], before)


def test_an_edited_current_is_not_ignored(monkeypatch) -> None:
    """Neither by loops that take a window for it, nor by gradients that were written for what it was."""
    plain, net = synapses.Conv2d.current, network()
    monkeypatch.setattr(synapses.Conv2d, "current", lambda self, spikes, weight, bias, shape: plain(
        self, spikes, 2 * weight, bias, shape))
    with pytest.raises(ValueError, match="the transpose of the synapse 'an example of Conv2d' .* is not that of its"):
        net(images())
    monkeypatch.setattr(synapses.Conv2d, "transpose", synapses.Synapse.transpose)
    with pytest.raises(ValueError, match="the parameter_gradients of the synapse 'an example of Conv2d'"):
        net(images())
    monkeypatch.setattr(synapses.Conv2d, "parameter_gradients", synapses.Synapse.parameter_gradients)
    with pytest.warns(UserWarning, match="the window of the synapse Conv2d says something else than its current"):
        assert same_as_dense(net)
