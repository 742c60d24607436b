"""The event engine against the dense one: every spike where sums are exact, and bounded differences where not."""
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from modules import IF, LIF, FeedbackSNN, TernaryCouple, notices, synapses
from modules.engines import ring
from modules.engines.dense import DENSE
from modules.engines.event import costs
from modules.engines.event import engine as event
from modules.engines.event.team import chunks, team
from tests.networks import NAMES, sample_input, small

EVENT = event.EventEngine()
ROOT = Path(__file__).parent.parent
GRID = 2.0**-6  # numbers on it have exact sums, whatever the order


def on_grid(model: nn.Module) -> nn.Module:
    """Round all parameters to multiples of ``GRID``; norm restriction, whose factor is not on the grid, is lifted."""
    for module in model.modules():
        if isinstance(module, synapses.MaxNorm):
            module.max_norm = float("inf")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter / GRID).round() * GRID)
    return model


def simulations(network: FeedbackSNN, x: torch.Tensor, gradient: torch.Tensor | None = None) -> tuple:
    """Results of both engines, forward and backward, on one circuit, so with the same dropout masks."""
    circuit, x = network.bind(x)
    forward = [engine.simulate_forward(circuit, x) for engine in (DENSE, EVENT)]
    masks = [(count > 0) & (count < network.time_step) for count in forward[0].counts]
    if gradient is None:
        gradient = (torch.randn_like(forward[0].rates[-1]) / GRID / 3).round() * GRID
    backward = [engine.simulate_backward(circuit, gradient, masks) for engine in (DENSE, EVENT)]
    return forward, backward


def assert_same(network: FeedbackSNN, x: torch.Tensor) -> None:
    """Both engines find the same spikes, and so the same sums of them, bit for bit, and spikes there are."""
    torch.manual_seed(7)
    forward, backward = simulations(network, (x / GRID).round() * GRID)
    for (a, b), name in ((forward, "counts"), (backward, "betas")):
        for layer, (expected, found) in enumerate(zip(getattr(a, name), getattr(b, name))):
            assert found.shape == expected.shape and found.stride() == expected.stride()
            # Traces of leaky neurons are summed in another order: spikes are the same if they differ by rounding only.
            exact = name == "counts" or network.neuron.leak == 1
            torch.testing.assert_close(found, expected, rtol=0, atol=0 if exact else 1e-6, msg=f"{name} of {layer}")
    for expected, found in zip(forward[0].rates, forward[1].rates):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert torch.equal(backward[0].fired, backward[1].fired)
    assert all(count.any() for count in forward[0].counts) and backward[0].fired.all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("leak", [1.0, 0.75])
@pytest.mark.parametrize("name", NAMES)
def test_every_spike_of_the_four_networks(name: str, leak: float, dropout: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    # A leak of 3/4 shifts the potential by two bits a step: few steps keep it exact.
    steps = {} if leak == 1 else {"time_step": 7, "time_step_back": 7}
    model = on_grid(small(name, leak=leak, dropout=dropout, gain=3.0, **steps)).to(dtype).train()
    if leak != 1:  # as leaky couples with the usual threshold send nothing through five layers
        model.network.couple = TernaryCouple(v_threshold=2**-5, u_rest=-(2**-1), leak=leak)
    assert_same(model.network, sample_input(name, model, batch=5).to(dtype) * 2)


# Inputs are (2, 9, 11).
ROUTES = {
    "odd sizes": lambda: dict(input=synapses.Conv2d(2, 3, 3), layers=[synapses.Conv2d(3, 20, 3, stride=2),
                              synapses.Conv2d(20, 5, 5, stride=3, padding=1)],
                              feedback=synapses.ConvTranspose2d(5, 3, 7, stride=7, padding=2, dropout=0.5)),
    "strides beyond the kernel": lambda: dict(input=synapses.Conv2d(2, 4, 3), layers=[
                              synapses.Conv2d(4, 6, 1, stride=2, padding=0), synapses.Conv2d(6, 5, 2, stride=3)],
                              feedback=synapses.ConvTranspose2d(5, 4, 1, stride=5, padding=0)),
    "no padding": lambda: dict(input=synapses.Conv2d(2, 4, 2, padding=0), layers=[synapses.Conv2d(4, 7, 4, padding=0)]),
    "upwards": lambda: dict(input=synapses.Conv2d(2, 4, 3, stride=2), layers=[
                            synapses.ConvTranspose2d(4, 6, 3, stride=2),
                            synapses.ConvTranspose2d(6, 70, 5, stride=3, dropout=0.5)]),
    "pooling": lambda: dict(input=synapses.Conv2d(2, 130, 3), layers=[
                            synapses.AvgPool2d(2), synapses.AvgPool2d(2, stride=1, padding=1, dropout=0.5),
                            synapses.Conv2d(130, 4, 1)]),
    "pooled feedback": lambda: dict(input=synapses.Conv2d(2, 6, 3, stride=4), layers=[synapses.ConvTranspose2d(6, 6, 4,
                                    stride=4, padding=0)], feedback=synapses.AvgPool2d(4, dropout=0.5)),
    "linear": lambda: dict(input=synapses.Linear(2 * 9 * 11, 20),
                           layers=[synapses.Linear(20, 33), synapses.Linear(33, 9)],
                           feedback=synapses.Linear(9, 20, dropout=0.5)),
    "linear after images": lambda: dict(input=synapses.Conv2d(2, 3, 3), layers=[synapses.Linear(3 * 9 * 11, 17)]),
    "one layer": lambda: dict(input=synapses.Conv2d(2, 17, 3), feedback=synapses.Conv2d(17, 17, 5)),
    "one layer, no feedback": lambda: dict(input=synapses.Linear(2 * 9 * 11, 5)),
    "restricted norm": lambda: dict(input=synapses.Conv2d(2, 4, 3), layers=[synapses.Conv2d(4, 4, 3, max_norm=1e9)]),
}


@pytest.mark.parametrize("neuron", [IF(v_threshold=0.75, u_rest=-0.25), LIF(leak=0.5)], ids=["IF", "LIF"])
@pytest.mark.parametrize("kind", ROUTES)
def test_every_spike_of_every_synapse(kind: str, neuron: LIF) -> None:
    """All synapses and their transposes, any kernel, stride and padding, sizes that no stride divides, with biases."""
    torch.manual_seed(1)
    steps = 20 if neuron.leak == 1 else 9
    network = on_grid(FeedbackSNN(**ROUTES[kind](), neuron=neuron, couple=TernaryCouple(v_threshold=2**-4, u_rest=-0.5),
                                  time_step=steps, time_step_back=steps)).double().train()
    with torch.no_grad():
        for synapse in (network.input, *network.layers, *([network.feedback] if network.feedback else [])):
            if synapse.weight is not None:
                synapse.weight.mul_(4)
                synapse.bias.copy_(torch.randint(0, 16, synapse.bias.shape) * GRID)
    assert_same(network, torch.randn(3, 2, 9, 11).double() * 2)


@pytest.mark.parametrize("name", ["alexnetf", "convnetf"])
def test_dense_products_where_spikes_are_many(name: str, monkeypatch) -> None:
    """Whatever layers get a dense product and samples go together, as this changes from segment to segment: the same
    spikes."""
    chosen = iter([{0}, {1}, set(), {0, 2}, {0, 1, 2, 3, 4}, {4}, {3}, {0}, set()] * 100)
    together = iter([16, 1, 2, 3] * 200)
    asked = []

    def change(ring, sent):
        asked.append(sent)
        return frozenset(layer for layer in next(chosen) if layer < len(ring.shapes))

    monkeypatch.setattr(costs, "dense_layers", change)
    monkeypatch.setattr(costs, "companions", lambda ring, sent: next(together))
    monkeypatch.setattr(event, "SEGMENT", 3)
    torch.manual_seed(2)
    model = on_grid(small(name, dropout=0.5, gain=3.0)).train()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # so that there are several chunks of samples
    try:
        assert_same(model.network, sample_input(name, model, batch=5) * 2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert len(asked) > 20


@pytest.mark.parametrize("event_input", [False, True])
@pytest.mark.parametrize("leak", [1.0, 0.5])
def test_products_between_the_turns_of_a_chain(event_input: bool, leak: float, monkeypatch) -> None:
    """Without feedback: layers that take more steps than fit one turn, frames that come in groups, and a product in
    some turns of some layers of some samples, as their spikes are many or few."""
    products = []

    def counted(*arguments):
        products.append(arguments)
        return to_layer(*arguments)

    to_layer = event.to_layer
    monkeypatch.setattr(event, "to_layer", counted)
    monkeypatch.setattr(costs, "break_even", lambda route, moved=0: 0.1 * torch.Size(route.source).numel())
    torch.manual_seed(9)
    steps = (70, 40) if leak == 1 else (13, 9)
    network = on_grid(FeedbackSNN(
        input=synapses.Conv2d(2, 9, 3), layers=[synapses.Conv2d(9, 20, 3, dropout=0.5), synapses.AvgPool2d(2),
        synapses.Linear(20 * 4 * 5, 70, dropout=0.5), synapses.Linear(70, 5)], event_input=event_input,
        neuron=IF() if leak == 1 else LIF(leak=leak), couple=TernaryCouple(v_threshold=2**-4, u_rest=-0.5),
        time_step=steps[0], time_step_back=steps[1])).double().train()
    with torch.no_grad():
        for synapse in (network.input, network.layers[0], *network.layers[2:]):
            synapse.weight.mul_(4)
            synapse.bias.copy_(torch.randint(0, 16, synapse.bias.shape) * GRID)
    frames = (steps[0],) if event_input else ()
    assert_same(network, torch.randn(3, *frames, 2, 9, 11).double() * 2)
    turns = -(-steps[0] // (8 if event_input else 32)) + -(-steps[1] // 32)
    assert 0 < len(products) < turns * 3 * 3  # of three samples and three synapses with weights


def test_cost_model_prefers_products_for_many_spikes_only() -> None:
    """Half of all units spiking means a dense product for a wide convolution, one in a hundred does not."""
    network = FeedbackSNN(input=synapses.Conv2d(3, 64, 3), layers=[synapses.Conv2d(64, 64, 3)])
    circuit, _ = network.bind(torch.zeros(4, 3, 16, 16))
    forward = ring.forward_ring(circuit, 1.0, 4, torch.device("cpu"))
    units = 64 * 16 * 16
    for density, expected in ((0.01, frozenset()), (0.9, frozenset({1}))):
        assert costs.dense_layers(forward, torch.tensor([density * units, 0.0]).numpy()) == expected


@pytest.mark.parametrize("name", NAMES)
def test_float32_differs_by_rounding_only(name: str) -> None:
    """Ordinary float32 weights: sums in another order move a potential by rounding, and so a spike at the threshold.

    Bound: of the T steps a unit whose potential touched the threshold fires one step earlier or later, which later
    steps make up for, so rates differ by at most a few of 1/T, in few units. In float64 nothing crosses at all.
    """
    torch.manual_seed(3)
    model = small(name, dropout=0.2, gain=2.0).train()
    x = sample_input(name, model, batch=6)
    gradient = torch.randn_like(model.network(x)) * 0.2
    forward, backward = simulations(model.network, x, gradient)
    for a, b in zip(forward[0].counts + backward[0].betas, forward[1].counts + backward[1].betas):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    forward, backward = simulations(model.network.float(), x.float(), gradient.float())
    for (a, b), steps in (([r.rates for r in forward], 20), ([r.betas for r in backward], 50)):
        for expected, found in zip(a, b):
            differing = (expected - found).abs() > 1e-5
            assert differing.double().mean() < 0.02
            assert (expected - found).abs().max() < 3.01 / steps


def test_gradients_do_not_depend_on_threads_or_neighbours() -> None:
    """One thread or three, a sample alone or in a batch: the same bits, in ordinary float32."""
    torch.manual_seed(4)
    model = small("alexnetf", gain=2.0, engine="event").float().eval()
    x = sample_input("alexnetf", model, batch=9).float()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(model.network(x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
    alone = torch.cat([model.network(image[None]) for image in x])
    torch.testing.assert_close(alone, found[0], rtol=0, atol=1e-7)


def test_workers_may_fork_after_a_simulation() -> None:
    """Data loaders fork; their processes do not have the threads that the engine keeps, and may simulate, too."""
    model, threads = small("lenet", engine="event").eval(), torch.get_num_threads()
    images = sample_input("lenet", model, batch=6)

    class Simulated(torch.utils.data.Dataset):
        def __getitem__(self, indices):
            return model.network(images[indices]).detach()

    torch.set_num_threads(2)
    try:
        expected = model.network(images)
        loader = DataLoader(Simulated(), None, sampler=[range(3), range(3, 6)], num_workers=2, timeout=60)
        for _ in range(2):
            assert torch.equal(torch.cat(list(loader)), expected)
            assert torch.equal(model.network(images), expected)
    finally:
        torch.set_num_threads(threads)


def test_a_fork_has_threads_of_its_own() -> None:
    """It lacks those that the engine keeps in the process that it came from."""
    threads = torch.get_num_threads()

    def work_in_turns() -> None:
        both, found = threading.Barrier(2), []

        def work(own, chunk):
            if not own:
                own.append(both.wait(30))  # a second thread must come
            found.append(chunk)

        team(list)(work, chunks(8, 1))
        assert sorted(found, key=min) == chunks(8, 1)

    torch.set_num_threads(2)
    try:
        work_in_turns()
        process = multiprocessing.get_context("fork").Process(target=work_in_turns)
        process.start()
        process.join(60)
        ended = process.exitcode
        process.kill()
        assert ended == 0
    finally:
        torch.set_num_threads(threads)


def test_simulations_side_by_side() -> None:
    """Two Python threads may each run a network."""
    from concurrent.futures import ThreadPoolExecutor
    torch.manual_seed(5)
    model = small("alexnetf", gain=2.0, engine="event").eval()
    batches = [sample_input("alexnetf", model, batch=3) for _ in range(4)]
    expected = [model.network(x) for x in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(model.network, batches))
    assert all(map(torch.equal, expected, found))


def test_an_empty_batch() -> None:
    model = small("alexnetf", engine="event").train()
    rates = model.network(sample_input("alexnetf", model, batch=0))
    rates.sum().backward()
    assert rates.shape[0] == 0


class Doubled(synapses.Synapse):
    """A synapse of a user's own."""

    def __init__(self, source: int, target: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(target, source, 3, 3) / 5), None

    def output_shape(self, input_shape):
        return len(self.weight), *input_shape[1:]

    def current(self, spikes, weight, bias, output_shape):
        return 2 * F.conv2d(spikes, weight, bias, 1, 1)


def test_falls_back_to_dense_and_says_so_once() -> None:
    """For synapses that it does not know, and number types that it does not compute in; not for an input synapse."""
    torch.manual_seed(6)
    notices.GIVEN.clear()
    x = torch.randn(2, 2, 8, 8)
    network = FeedbackSNN(input=synapses.Conv2d(2, 3, 3), layers=[Doubled(3, 3)], engine="event")
    with pytest.warns(UserWarning, match="does not know synapses of type Doubled") as caught:
        rates = network(x)
        network(x)
    assert len(caught) == 1
    network.engine = "dense"
    assert torch.equal(network(x), rates)
    network = FeedbackSNN(input=Doubled(2, 3), layers=[synapses.Conv2d(3, 3, 3)], engine="event")
    network(x)
    with pytest.warns(UserWarning, match="not in torch.bfloat16"):
        network.bfloat16()(x.bfloat16())


SMALL = ("import torch; from modules import FeedbackSNN, synapses\n"
         "net = FeedbackSNN(input=synapses.Linear(1, 1, bias=False), engine='event', time_step=7)\n"
         "torch.nn.init.ones_(net.input.weight)\n"
         "print(f'rate {net(torch.ones(1, 1)).item():.3f}')\n")


def run(program: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run a program in a folder, with this process's environment but for some variables."""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, cwd=folder,
                          env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment})


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the library's sources."""
    shutil.copytree(ROOT / "modules", tmp_path / "copy" / "modules", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "copy"


@pytest.mark.parametrize("case", ["missing", "broken", "switched off"])
def test_without_numba(case: str, tmp_path: Path) -> None:
    """Numba is not needed: without it, with a broken one, and where it must not compile, the dense engine runs, and
    says why."""
    (tmp_path / "numba.py").write_text("raise SystemError('built for another NumPy')\n")
    environment, reason, before = {
        "missing": ({}, "numba is not installed", "import sys; sys.modules['numba'] = None\n"),
        "broken": ({"PYTHONPATH": f"{tmp_path}"}, "cannot be imported (SystemError: built for another NumPy)", ""),
        "switched off": ({"NUMBA_DISABLE_JIT": "1"}, "NUMBA_DISABLE_JIT is set", ""),
    }[case]
    done = run(before + SMALL + "net(torch.ones(1, 1))", ROOT, **environment)
    assert "rate 0.571" in done.stdout and done.stderr.count(reason) == 1, done.stderr


def test_numba_waits_for_the_first_simulation() -> None:
    """Whoever asks a script for help needs no Numba, nor does a network before it is called."""
    program = SMALL.replace("print", "import sys; assert 'numba' not in sys.modules\nprint")
    assert "rate 0.571" in run("import modules.engines.event.engine\n" + program, ROOT).stdout


LOOP = """
import numpy as np
from modules.engines.event.compiled import jit
from modules.engines.event.lanes import at_least, count, load

@jit(entry=True)
def above(numbers, limit):
    return count(at_least(load(numbers, 0, 16), limit))
"""
LOOK = ("import numpy; from modules.engines.event import compiled\n"
        "print(compiled.load('loop').above(numpy.arange(16.0), 12.0), 'of 16')")


@pytest.fixture
def loop(copy: Path) -> Path:
    """The folder of the engine in a copy of the sources, with a loop of its own that takes a second to compile."""
    folder = copy / "modules" / "engines" / "event"
    (folder / "loop.py").write_text(LOOP)
    return folder


def test_a_change_of_the_sources_is_a_change_of_the_loops(copy: Path, loop: Path) -> None:
    """Numba keeps compiled functions by the file that they are in: what they use from another must count, too."""
    lanes = loop / "lanes.py"
    before = lanes.read_text()
    at_threshold = before.replace('at_least = _comparison(">=")', 'at_least = _comparison(">")')
    assert at_threshold != before
    for text, above in ((before, 4), (at_threshold, 3), (before, 4)):
        lanes.write_text(text)
        done = run(LOOK, copy, NUMBA_CACHE_DIR="")
        assert done.stdout == f"{above} of 16\n", done.stderr
    kept = list((loop / "__pycache__").glob("loops-*"))
    assert len(kept) == 2 and all(any(folder.rglob("*.nbc")) for folder in kept)


def test_nowhere_to_keep_compiled_loops(copy: Path, loop: Path) -> None:
    """Where neither the sources' folder nor the user's can be written to, they run, and it is said what that costs."""
    (loop / "__pycache__").touch()
    done = run(LOOK, copy, XDG_CACHE_HOME="/dev/null", NUMBA_CACHE_DIR="")
    assert done.stdout == "4 of 16\n" and done.stderr.count("NUMBA_CACHE_DIR") == 1, done.stderr


def test_circuit_is_left_unchanged() -> None:
    """Engines leave their arguments alone: weights, input, gradient and masks."""
    torch.manual_seed(8)
    model = small("alexnetf", dropout=0.5, gain=2.0).train()
    x = sample_input("alexnetf", model)
    circuit, x = model.network.bind(x)
    circuit = circuit.detached()
    gradient = torch.randn_like(EVENT.simulate_forward(circuit, x).rates[-1])
    masks = [torch.ones(2, *c.output_shape, dtype=torch.bool) for c in circuit.feedforward]
    tensors = [x, gradient, *masks, *(t for t in circuit.tensors if t is not None)]
    copies = [t.clone() for t in tensors]
    EVENT.simulate_forward(replace(circuit, time_step=3), x)
    EVENT.simulate_backward(circuit, gradient, masks)
    assert all(map(torch.equal, tensors, copies))
