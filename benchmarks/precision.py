"""What each precision of the CUDA engine costs: spikes, gradients and test results of AlexNet-F, against fp32.

    python -m benchmarks.precision [--batch 128] [--path DATA] [--resume FILE --test 1000]
    python -m benchmarks.precision --device cpu --batch 16 --path DATA --resume FILE

Without a GPU the event engine computes with the weights that the CUDA engine would use. Spikes are exact in all of its
number formats and sums are in float32, so this is what a GPU finds, up to the order of sums. What that order is worth
the last row shows: fp32 once more, by the dense engine. A spike that moves by a step moves others, whatever moved it.
"""
import argparse
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.speed import arguments, data, describe, one_iteration
from cifar_alexnetf import EXPERIMENT
from models import SpikingClassifier
from modules.circuit import Circuit
from modules.engines import BackwardResult, Engine, ForwardResult, select
from modules.engines.cuda.engine import PRECISIONS, CudaEngine
from modules.engines.cuda.loop import rounded
from utils import checkpoint

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
def tested(model: SpikingClassifier, loader: Iterable, device: str) -> tuple[float, float]:
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--path", help="folder of the data sets; noise unless given")
    parser.add_argument("--resume", help="checkpoint to take the weights from, then tested too, given --path")
    parser.add_argument("--test", type=int, default=200, help="number of test images")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--steps-back", type=int, default=250)
    parser.add_argument("--drive", type=float, help="scale_factor / batch; the experiment's own unless given")
    parser.set_defaults(seed=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.backends.cudnn.allow_tf32 = False  # outside of the simulations, and in the dense engine
    args, usual_drive = arguments("alexnetf", options.batch, "-t", options.steps, "-tb", options.steps_back,
                                  "--test-limit", options.test, *(["--path", options.path] if options.path else []))
    model = EXPERIMENT.build_model(args).to(options.device).train()
    if options.resume:
        model.load_state_dict(checkpoint.load(options.resume).contents["state_dict"])
    inputs, labels, source = data("alexnetf", args, options)
    inputs, labels = inputs.to(options.device), labels.to(options.device)
    kind = Rounded if options.device == "cpu" else CudaEngine
    engines: dict[str, str | Engine] = {p: kind(p) for p in PRECISIONS} | {"fp32, other order": "dense"}
    print(f"AlexNet-F, batch {options.batch}, {options.steps} + {options.steps_back} steps, {source}, weights "
          f"{options.resume or 'fresh'}; {describe(torch.device(options.device))}\n\n"
          "| precision | forward rates, relative difference by layer | backward rates | gradient | test accuracy, loss "
          "|\n"
          "|---|---|---|---|---|")
    exact = None
    for name, model.network.engine in engines.items():
        spikes = one_iteration(model, inputs, labels, (options.drive or usual_drive) * options.batch)[1]
        gradient = torch.cat([p.grad.flatten() for p in model.network.parameters()])
        found = spikes.forward_rates, spikes.backward_rates, gradient
        exact = exact or found
        test = ""
        if options.resume and options.path:
            loader = EXPERIMENT.loaders(args, seed=options.seed)[1]
            test = "{:.1f}%, {:.4f}".format(*tested(model, loader, options.device))
        print(f"| {name} | {relative(found[0], exact[0])} | {relative(found[1], exact[1])} | "
              f"{(gradient - exact[2]).norm() / exact[2].norm().clamp(min=1e-30):.2g} | {test} |", flush=True)
