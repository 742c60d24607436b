"""Operations, updates and products against brute force: every spike expanded into its targets, one by one."""
import itertools
import math

import pytest
import torch
from torch import nn

from modules import IF, LIF, FeedbackSNN, TernaryCouple, synapses
from modules.circuit import Circuit, Connection
from modules.engines.dense import DENSE
from modules.operations import Counts, Recorder
from modules.synapses import AvgPool2d, ConvTranspose2d, Linear
from tests.networks import NAMES, sample_input, small


class Turned(synapses.Synapse):
    """A synapse of a user's own: each unit to its mirror image and the one after it; one coupling is zero."""

    def __init__(self, units: int) -> None:
        super().__init__(dropout=0.3)
        self.weight, self.bias = nn.Parameter(torch.rand(units) + 0.3), nn.Parameter(torch.rand(units) / 5)
        with torch.no_grad():
            self.weight[2] = 0

    def output_shape(self, input_shape):
        return input_shape

    def current(self, spikes, weight, bias, output_shape):
        flat = spikes.flatten(1)
        current = flat.flip(1) * weight + 0.2 * flat.roll(1, 1)
        return (current if bias is None else current + bias).unflatten(1, output_shape)


def targets(connection: Connection, unit: int) -> list[int]:
    """Numbers of the units that a unit reaches, by the definition of the synapse."""
    synapse, source, target = connection.synapse, connection.input_shape, connection.output_shape
    if isinstance(synapse, Turned):
        mirror, following = len(synapse.weight) - 1 - unit, (unit + 1) % len(synapse.weight)
        return [*([mirror] if synapse.weight[mirror] != 0 else []), *([following] if following != mirror else [])]
    if isinstance(synapse, Linear):
        return [j for j in range(target[0]) if connection.weight[j, unit] != 0]
    channel, y, x = (int(n) for n in torch.unravel_index(torch.tensor(unit), source))
    found = []
    for other in range(target[0]):
        for row, column in itertools.product(range(target[1]), range(target[2])):
            large, small_ = ((row, column), (y, x)) if isinstance(synapse, ConvTranspose2d) else ((y, x), (row, column))
            taps = [n + synapse.padding - m * synapse.stride for n, m in zip(large, small_)]
            if not all(0 <= tap < synapse.kernel_size for tap in taps):
                continue
            if isinstance(synapse, AvgPool2d):
                coupled = other == channel
            else:
                pair = (channel, other) if isinstance(synapse, ConvTranspose2d) else (other, channel)
                coupled = connection.weight[(*pair, *taps)] != 0
            if coupled:
                found.append((other * target[1] + row) * target[2] + column)
    return found


class BruteForce:
    """Both simulations of a circuit by plain matrices, spike by spike.

    Attributes:
        operations, products, updates, received, spikes: by phase, then by connection or layer.
    """

    def __init__(self, circuit: Circuit, x: torch.Tensor) -> None:
        self.circuit, self.x = circuit, x
        self.batch = x.shape[1] if circuit.event_input else len(x)
        self.reach = {c.name: [targets(c, unit) for unit in range(math.prod(c.input_shape))]
                      for c in circuit.connections}
        self.kept = {c.name: None if c.dropout is None else c.dropout.flatten(1) != 0 for c in circuit.connections}
        self.sizes = [math.prod(c.output_shape) for c in circuit.feedforward]
        self.last = len(self.sizes) - 1

    def keeps(self, name: str, sample: int, unit: int) -> bool:
        return self.kept[name] is None or bool(self.kept[name][sample, unit])

    def start(self) -> None:
        self.operations = {c.name: 0 for c in self.circuit.connections}
        self.products = {c.name: 0 for c in self.circuit.connections}
        self.received, self.spikes = [0] * len(self.sizes), [torch.zeros(self.batch, n) for n in self.sizes]

    def forward(self) -> None:
        """Simulate, and count along the way."""
        self.start()
        circuit, neuron, names = self.circuit, self.circuit.neuron, [c.name for c in self.circuit.connections]
        potential = [torch.zeros(self.batch, n).double() for n in self.sizes]
        spikes = [torch.zeros_like(p) for p in potential]
        for step in range(circuit.time_step):
            frame = self.x[step] if circuit.event_input else self.x
            for layer, own in enumerate(circuit.feedforward):
                before = frame if layer == 0 else spikes[layer - 1].view(self.batch, *own.input_shape)
                current, ways = own.current(before).flatten(1), [(names[layer], before.flatten(1))]
                if layer == 0 and circuit.has_feedback:
                    back = spikes[-1].view(self.batch, *circuit.feedback.input_shape)
                    current = current + circuit.feedback.current(back).flatten(1)
                    ways.append((names[-1], back.flatten(1)))
                reached = set()
                for name, senders in ways:
                    image = name == "input" and not circuit.event_input
                    for sample, unit in (torch.ones_like(senders) if image else senders).nonzero().tolist():
                        hit = [j for j in self.reach[name][unit] if self.keeps(name, sample, j)]
                        reached |= {(sample, j) for j in hit}
                        spike = not image and senders[sample, unit] == 1
                        if spike:
                            self.operations[name] += len(hit)
                        elif not image or step == 0:
                            self.products[name] += len(hit)
                self.received[layer] += len(reached)
                potential[layer] += current
                spikes[layer] = (potential[layer] >= neuron.v_threshold).double()
                potential[layer] = neuron.leak * (potential[layer] - neuron.quantum * spikes[layer])
                self.spikes[layer] += spikes[layer]

    def backward(self, gradient: torch.Tensor, masks: list[torch.Tensor]) -> None:
        """The same with couples."""
        self.start()
        circuit, couple = self.circuit, self.circuit.couple
        open_ = [mask.flatten(1) for mask in masks]
        potential = [torch.zeros(self.batch, n).double() for n in self.sizes]
        spikes = [torch.zeros_like(p) for p in potential]
        for _ in range(circuit.time_step_back):
            for layer in range(self.last, -1, -1):
                reached, current = set(), torch.zeros_like(potential[layer])
                if layer == self.last:
                    current = gradient.flatten(1)
                    reached |= {(sample, j) for sample, j in current.nonzero().tolist() if open_[layer][sample, j]}
                    own, after = circuit.feedback, 0
                else:
                    own, after = circuit.feedforward[layer + 1], layer + 1
                if own is not None:
                    gate = (open_[after] / circuit.neuron.quantum).view(self.batch, *own.output_shape)
                    gate = gate if own.dropout is None else gate * own.dropout
                    signal = couple.quantum * spikes[after].view(self.batch, *own.output_shape) * gate
                    current = current + own.transpose(signal).flatten(1)
                    sent = {(sample, j) for sample, j in spikes[after].nonzero().tolist()
                            if open_[after][sample, j] and self.keeps(own.name, sample, j)}
                    for i, hit in enumerate(self.reach[own.name]):
                        for sample, j in itertools.product(range(self.batch), hit):
                            if (sample, j) in sent and open_[layer][sample, i]:
                                self.operations[own.name] += 1
                                reached.add((sample, i))
                self.received[layer] += len(reached)
                potential[layer] += current
                spikes[layer] = ((potential[layer] >= couple.v_threshold).double()
                                 - (potential[layer] <= -couple.v_threshold).double())
                potential[layer] = couple.leak * (potential[layer] - couple.quantum * spikes[layer])
                self.spikes[layer] += spikes[layer] != 0
        for own, mask in zip(circuit.connections, circuit.targets(open_)):
            for hit, sample in itertools.product(self.reach[own.name], range(self.batch)):
                self.products[own.name] += sum(self.keeps(own.name, sample, j) and bool(mask[sample, j]) for j in hit)


def compare(network: FeedbackSNN, x: torch.Tensor) -> tuple[Counts, Counts]:
    """Both phases counted by the recorder and by brute force, in a pass through autograd."""
    recorder, keys = Recorder(), torch.arange(len(x))
    network.engine = recorder
    rates = network(x, keys=keys)
    gradient = torch.randn_like(rates)
    gradient[0] *= torch.rand_like(gradient[0]) < 0.5
    rates.backward(gradient)
    with torch.no_grad():
        circuit, bound = network.bind(x, keys)
        masks = [(n > 0) & (n < network.time_step) for n in DENSE.simulate_forward(circuit, bound).counts]
        brute = BruteForce(circuit, bound)
        for phase, found in ((brute.forward, recorder.forward), (lambda: brute.backward(gradient, masks),
                                                                 recorder.backward)):
            phase()
            assert found.operations == {name: brute.operations[name] for name in found.operations}
            assert {name: found.products.get(name, 0) for name in brute.products} == brute.products | {
                c.name: 0 for c in circuit.connections
                if found.phase == "backward" and not list(c.synapse.parameters())}
            assert found.received == brute.received
            assert found.updates == [found.samples * n * found.steps for n in brute.sizes]
            for spikes, expected in zip(found.spikes, brute.spikes):
                assert torch.equal(spikes.flatten(1), expected)
            assert all(n for name, n in found.operations.items() if name != "input") and min(found.received), found
    return recorder.forward, recorder.backward


@pytest.mark.parametrize("leak", [1.0, 0.9])
@pytest.mark.parametrize("name", NAMES)
def test_four_networks(name: str, leak: float) -> None:
    """Dropout, borders, stride 2, odd sizes, event frames, IF and LIF: every number equals brute force."""
    torch.manual_seed(0)
    model = small(name, leak=leak, dropout=0.3, gain=2.0, time_step=6, time_step_back=8).train()
    model.network.couple = TernaryCouple(v_threshold=0.05, u_rest=-0.5, leak=leak)
    forward, backward = compare(model.network, sample_input(name, model, frames=6))
    if name == "convnetf":  # frames of zeros and ones are spikes
        assert forward.operations["input"] > 0 and forward.products["input"] == 0
    for counts in (forward, backward):
        for connection, operations in counts.operations.items():
            assert operations <= counts.couplings.get(connection, math.inf) * counts.steps


@pytest.mark.parametrize("neuron", [IF(), LIF(leak=0.8)], ids=["IF", "LIF"])
@pytest.mark.parametrize("kind", ["own", "pools", "linear", "values"])
def test_every_synapse(kind: str, neuron: LIF) -> None:
    """A user's own synapse, overlapping and padded windows, weights of zero, a layer that feeds itself, grey frames."""
    torch.manual_seed(1)
    parts = {
        "own": lambda: dict(input=Linear(12, 9), layers=[Turned(9)], feedback=Turned(9)),
        "pools": lambda: dict(input=synapses.Conv2d(1, 3, 3, stride=2), layers=[
            AvgPool2d(3, stride=1, padding=1, dropout=0.3), ConvTranspose2d(3, 2, 3, stride=2, dropout=0.3)],
            feedback=synapses.Conv2d(2, 3, 3, stride=2)),
        "linear": lambda: dict(input=Linear(35, 8, dropout=0.4), feedback=Linear(8, 8, dropout=0.4, max_norm=0.5)),
        "values": lambda: dict(input=synapses.Conv2d(1, 2, 3, dropout=0.2), layers=[Linear(70, 6)], event_input=True),
    }[kind]()
    network = FeedbackSNN(**parts, neuron=neuron, couple=TernaryCouple(v_threshold=0.05, u_rest=-0.5), time_step=7,
                          time_step_back=9).double().train()
    with torch.no_grad():
        for synapse in (network.input, *network.layers):
            if synapse.weight is not None and not isinstance(synapse, Turned):
                synapse.weight[torch.rand_like(synapse.weight) < 0.2] = 0
                synapse.weight.mul_(3)
                synapse.bias.uniform_(0, 0.3)
    shape = {"own": (12,), "pools": (1, 7, 9), "linear": (1, 5, 7), "values": (7, 1, 5, 7)}[kind]
    x = torch.randn(3, *shape).double() / (4 if kind == "linear" else 1)
    if kind == "values":
        x = x.clamp(0, 1)
    forward, _ = compare(network, x)
    if kind == "values":
        assert forward.operations["input"] > 0 and forward.products["input"] > 0


def test_the_recorder_is_an_engine_like_dense() -> None:
    """The same rates and gradients, bit for bit; and it shows every step of every layer in the order of simulation."""
    torch.manual_seed(2)
    model = small("alexnetf", gain=2.0, time_step=4, time_step_back=5).train()
    x, seen = sample_input("alexnetf", model), []
    found = []
    for engine in ("dense", Recorder(lambda phase, layer, potential, spikes: seen.append((phase, layer)))):
        model.network.engine = engine
        rates = model.network(x)
        found.append([rates, *torch.autograd.grad(rates, list(model.network.parameters()), rates.detach() / 3)])
    assert all(map(torch.equal, *found))
    assert seen == [("forward", layer) for layer in range(5)] * 4 + [("backward", 4 - layer) for layer in range(5)] * 5
