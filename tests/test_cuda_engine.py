"""The CUDA engine against the dense one: on a GPU where there is one, else under Triton's interpreter on the CPU.

Events, chains of layers and several calls are in the engine's own trial, see :mod:`tests.test_trial`.

Triton decides when it is imported whether to interpret, so on a CPU these tests run in a process of their own.
"""
import copy
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from modules import IF, LIF, FeedbackSNN, TernaryCouple, notices, synapses
from modules.engines import ring
from modules.engines.cuda import engine as cuda
from modules.engines.cuda.graph import recorded
from modules.engines.cuda.loop import rounded
from modules.engines.dense import DENSE
from tests.networks import NAMES, sample_input, small
from tests.processes import REPOSITORY, environment
from tests.test_event_engine import GRID, ROUTES, on_grid

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
RUNS = DEVICE.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
torch.backends.cudnn.allow_tf32 = False  # the dense engine's products, to compare with
STEPS = dict.fromkeys(("time_step", "time_step_back"), 6 if DEVICE.type == "cuda" else 4)  # interpreted, each is slow


def compare(network: FeedbackSNN, x: torch.Tensor, precision: str, calls: int = 1) -> None:
    """Every spike of both phases; in several calls, tensors are used again."""
    engine, network, x = cuda.CudaEngine(precision), network.to(DEVICE), x.to(DEVICE)
    for call in range(calls):
        torch.manual_seed(call)
        circuit, frames = network.bind(x)
        a, b = (e.simulate_forward(circuit, frames) for e in (DENSE, engine))
        assert engine.obstacle(frames.device, frames.dtype) is None and ring.obstacle(circuit) is None
        for expected, found in zip(a.counts, b.counts):
            assert torch.equal(expected, found) and expected.stride() == found.stride()
        for expected, found in zip(a.rates, b.rates):
            torch.testing.assert_close(expected, found, rtol=1e-6, atol=1e-7)
        masks = [(count > 0) & (count < network.time_step) for count in a.counts]
        gradient = (torch.randn_like(a.rates[-1]) / GRID / 2).round() * GRID
        a, b = (e.simulate_backward(circuit, gradient, masks) for e in (DENSE, engine))
        for expected, found in zip(a.betas, b.betas):
            torch.testing.assert_close(expected, found, rtol=1e-6, atol=1e-7)
        assert torch.equal(a.fired, b.fired) and a.fired.any()


if RUNS:
    @pytest.mark.parametrize("name, precision", [
        *((name, "bf16x2") for name in NAMES), ("alexnetf", "bf16"),
        *(("alexnetf", precision) for precision in ("fp32", "tf32") if DEVICE.type == "cuda")])  # else as other tests
    def test_every_spike_of_the_four_networks(name: str, precision: str) -> None:
        """Dropout on; weights on a grid so coarse that even one bfloat16 holds them."""
        torch.manual_seed(0)
        model = on_grid(small(name, dropout=0.5, gain=2.0, **STEPS)).float().train()
        if precision == "bf16":
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.copy_(parameter.bfloat16().float())
        x = (sample_input(name, model, batch=3, frames=STEPS["time_step"]).float() / GRID).round() * GRID
        compare(model.network, x, precision)

    @pytest.mark.parametrize("kind, neuron", [
        *((kind, IF(v_threshold=0.75, u_rest=-0.25)) for kind in ROUTES), ("upwards", LIF(leak=0.5))])
    def test_every_synapse(kind: str, neuron: LIF) -> None:
        torch.manual_seed(1)
        network = on_grid(FeedbackSNN(**ROUTES[kind](), neuron=neuron, couple=TernaryCouple(v_threshold=0.25),
                                      time_step=3, time_step_back=4)).train()
        x = (torch.randn(2, 2, 9, 11) / GRID).round() * GRID
        with torch.no_grad():
            for synapse in (network.input, *network.layers):
                if synapse.weight is not None:
                    synapse.weight.mul_(4)
        compare(network, x, "fp32", calls=2 if kind == "one layer" else 1)

    @pytest.mark.parametrize("precision", ["tf32", "bf16"])
    def test_products_take_rounded_weights(precision: str) -> None:
        """Exactly the spikes of the dense engine with weights rounded beforehand, which are others than without."""
        torch.manual_seed(6)
        model = on_grid(small("alexnetf", gain=2.0, **STEPS)).float().eval()
        coarse = copy.deepcopy(model)
        with torch.no_grad():
            for connection, own in zip((*model.network.layers, model.network.feedback),
                                       (*coarse.network.layers, coarse.network.feedback)):
                weight = connection.stored_weight
                weight += torch.randint(-2**8, 2**8, weight.shape) * 2.0**-16  # sums stay exact
                own.stored_weight.copy_(sum(rounded(weight, precision)))
        x = (sample_input("alexnetf", model, batch=4).float() / GRID).round() * GRID
        gradient = (torch.randn(4, *model.network.layer_shapes(x.shape[1:])[-1]) / GRID / 2).round().to(DEVICE) * GRID
        results = []
        for network, engine in ((coarse, DENSE), (model, cuda.CudaEngine(precision)), (model, DENSE)):
            circuit, images = network.to(DEVICE).network.bind(x.to(DEVICE))
            counts = engine.simulate_forward(circuit, images).counts
            ones = [torch.ones_like(count, dtype=torch.bool) for count in counts]
            betas = engine.simulate_backward(circuit, gradient, ones).betas
            results.append(torch.cat([t.flatten() for t in (*counts, *betas)]))
        expected, found, unrounded = results
        assert torch.equal(found, expected) and not torch.equal(unrounded, expected)

    def test_split_weights_are_nearly_exact() -> None:
        """Two bfloat16 terms leave an error of 2^-16 at most, one term 2^-8: rates differ accordingly seldom."""
        torch.manual_seed(2)
        model = small("alexnetf", gain=2.0, **STEPS).float().eval()
        x = sample_input("alexnetf", model, batch=4).float().to(DEVICE)
        model.to(DEVICE)
        circuit, x = model.network.bind(x)
        exact = DENSE.simulate_forward(circuit, x)
        differing = {}
        for precision in ("bf16x2", "bf16"):
            found = cuda.CudaEngine(precision).simulate_forward(circuit, x)
            differing[precision] = sum((a != b).double().mean().item() for a, b in zip(exact.counts, found.counts))
        assert differing["bf16x2"] < 0.01 and differing["bf16x2"] <= differing["bf16"]

    def test_training_step_through_autograd() -> None:
        """Two forward passes before a backward one: static tensors are not what comes out."""
        torch.manual_seed(4)
        model = small("alexnetf", gain=2.0, **STEPS).float().eval()
        model.network.couple = replace(model.network.couple, v_threshold=0.05, u_rest=-0.05)
        x = sample_input("alexnetf", model, batch=4).float().to(DEVICE)
        model.to(DEVICE)
        gradients = []
        for engine in ("dense", cuda.CudaEngine("fp32")):
            model.network.engine = engine
            model.zero_grad()
            first, second = model.network(x[:2]), model.network(x[2:])
            (first.square().sum() + second.square().sum()).backward()
            gradients.append([p.grad.clone() for p in model.network.parameters()])
        for expected, found in zip(*gradients):
            assert (expected - found).norm() < 0.02 * expected.norm()
        assert all(g.any() for g in gradients[0])
else:
    def test_under_the_interpreter() -> None:
        """The tests above, interpreted."""
        done = subprocess.run([sys.executable, "-m", "pytest", "-q", __file__], cwd=REPOSITORY, capture_output=True,
                              text=True, env=environment(TRITON_INTERPRET="1"), timeout=500)
        assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-5000:]

    def test_falls_back_to_dense_without_a_gpu() -> None:
        """On a CPU, the engine says once why it does not run."""
        notices.GIVEN.clear()
        network = FeedbackSNN(input=synapses.Linear(4, 3), engine="cuda")
        with pytest.warns(UserWarning, match="it is for GPUs, and the network is on 'cpu'") as caught:
            network(torch.ones(2, 4))
            network(torch.ones(2, 4))
        assert len(caught) == 1


def test_nothing_is_recorded_on_a_cpu() -> None:
    calls = []
    replay = recorded(lambda: calls.append(1), torch.device("cpu"))
    replay()
    replay()
    assert len(calls) == 2


def test_unknown_precision() -> None:
    with pytest.raises(ValueError, match="there is no precision 'fp8'; choose one of fp32, tf32, bf16x2, bf16"):
        cuda.CudaEngine("fp8")


@pytest.mark.parametrize("precision, terms, error", [
    ("fp32", 1, 0), ("tf32", 2, 2**-11), ("bf16x2", 2, 2**-17), ("bf16", 1, 2**-8)])
def test_weights_are_rounded_to_nearest(precision: str, terms: int, error: float) -> None:
    """By half a unit of the last place at most, and not again when they already are rounded."""
    torch.manual_seed(5)
    weight = torch.randn(3, 5, 400).transpose(0, 2) * 2.0 ** torch.randint(-20, 20, (400, 5, 3))
    found = rounded(weight, precision)
    total = sum(found)
    power = 2.0 ** weight.abs().log2().floor()
    assert len(found) == terms and ((total - weight).abs() <= error * power).all()
    assert (total - weight).abs().max() >= error * power.min() / 2
    assert torch.equal(sum(rounded(total, precision)), total)
    if precision != "fp32":
        assert all(torch.equal(term, term.bfloat16().float()) for term in found)


def test_tf32_keeps_ten_bits_behind_the_first() -> None:
    """Halves go to the even neighbour, of either sign; a carry reaches the exponent."""
    unit = 2.0**-10
    weight = torch.tensor([1, 1 + unit / 2, 1 + 1.5 * unit, -1 - unit / 2, -1 - 0.51 * unit, 2 - unit / 4, 0.0])
    assert sum(rounded(weight, "tf32")).tolist() == [1, 1, 1 + 2 * unit, -1, -1 - unit, 2, 0]
