"""What each precision of the CUDA engine costs: spikes, gradients and test results of AlexNet-F, against fp32.

    python -m benchmarks.precision [--batch 128] [--path DATA] [--resume FILE --test 1000]
    python -m benchmarks.precision --device cpu --batch 16 --path DATA --resume FILE

Without a GPU the event engine computes with the weights that the CUDA engine would use. Spikes are exact in all of its
number formats and sums are in float32, so this is what a GPU finds, up to the order of sums. What that order is worth
the last row shows: fp32 once more, by the dense engine. A spike that moves by a step moves others, whatever moved it.
"""
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.speed import describe, one_iteration, parser, prepared
from models import SpikingClassifier
from modules.circuit import Circuit
from modules.engines import BackwardResult, Engine, ForwardResult, select
from modules.engines.cuda.engine import PRECISIONS, CudaEngine
from modules.engines.cuda.loop import rounded

EVENT = select("event", torch.device("cpu"))


class Rounded:
    """The event engine with weights as the CUDA engine rounds them: with the factors that all spikes share."""

    def __init__(self, precision: str) -> None:
        self.name = self.precision = precision

    def simulate_forward(self, circuit: Circuit, x: Tensor) -> ForwardResult:
        return EVENT.simulate_forward(self._rounded(circuit, 1.0), x)

    def simulate_backward(self, circuit: Circuit, gradient: Tensor, masks: list[Tensor]) -> BackwardResult:
        factor = circuit.couple.quantum / circuit.neuron.quantum
        return EVENT.simulate_backward(self._rounded(circuit, factor), gradient, masks)

    def _rounded(self, circuit: Circuit, factor: float) -> Circuit:
        tensors = [*circuit.input.tensors]
        for c in circuit.connections[1:]:
            scale = factor * c.dropout_scale
            weight = c.weight if c.weight is None else sum(rounded(c.weight * scale, self.precision)) / scale
            tensors += [weight, c.bias, *c.further]
        return circuit.with_tensors(tensors)


@torch.no_grad()
def tested(model: SpikingClassifier, loader: Iterable, device: torch.device) -> tuple[float, float]:
    """Accuracy in percent and mean loss on test data."""
    model.eval()
    pairs = [(model(inputs.to(device)), labels.to(device)) for inputs, labels, _ in loader]
    logits, labels = map(torch.cat, zip(*pairs))
    model.train()
    return 100 * (logits.argmax(1) == labels).double().mean().item(), F.cross_entropy(logits, labels).item()


def relative(found: Tensor, exact: Tensor) -> str:
    """Differences of the rates of all layers, relative to those of fp32."""
    return " ".join(f"{d:.1e}" for d in ((found - exact).abs() / exact.clamp(min=1e-12)).tolist())


if __name__ == "__main__":
    flags = parser(__doc__, "batch", "path", "resume", "device", "drive", batch=128, device="cuda", model="alexnetf",
                   seed=0)
    flags.add_argument("--test", type=int, default=200, help="number of test images, given --path and --resume")
    flags.add_argument("--steps", type=int, default=30)
    flags.add_argument("--steps-back", type=int, default=250)
    options = flags.parse_args()
    torch.backends.cudnn.allow_tf32 = False  # outside of the simulations, and in the dense engine
    own = prepared(options, "-t", options.steps, "-tb", options.steps_back, "--test-limit", options.test)
    network, device = own.model.network, own.inputs.device
    kind = Rounded if device.type == "cpu" else CudaEngine
    engines: dict[str, str | Engine] = {p: kind(p) for p in PRECISIONS} | {"fp32, other order": "dense"}
    print(f"AlexNet-F, batch {options.batch}, {options.steps} + {options.steps_back} steps, {own.source}, weights "
          f"{options.resume or 'fresh'}; {describe(device)}\n\n"
          "| precision | forward rates, relative difference by layer | backward rates | gradient | test accuracy, loss "
          "|\n|---|---|---|---|---|")
    exact = None
    for name, network.engine in engines.items():
        spikes = one_iteration(own)[1]
        gradient = torch.cat([p.grad.flatten() for p in network.parameters()])
        found = spikes.forward_rates, spikes.backward_rates, gradient
        exact = exact or found
        test = ""
        if options.resume and own.test_loader:
            test = "{:.1f}%, {:.4f}".format(*tested(own.model, own.test_loader, device))
        print(f"| {name} | {relative(found[0], exact[0])} | {relative(found[1], exact[1])} | "
              f"{(gradient - exact[2]).norm() / exact[2].norm().clamp(min=1e-30):.2g} | {test} |", flush=True)
