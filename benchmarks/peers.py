"""A training step beside backpropagation through time, which most of the field trains with: SpikingJelly's IF neurons.

    python -m benchmarks.peers [--batch 16] [--path DATA] [--resume FILE]

Both take AlexNet-F's five convolutions and its classifier; SpikingJelly's network has no feedback, as it has none to
offer. Steps are taken in turn in one process, peak memory in a process for each. SpikingJelly is no requirement of this
repository: ``pip install spikingjelly`` first.
"""
import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import speed
from models.alexnetf import ALEXNET_WIDTHS


class ThroughTime(nn.Module):
    """The same layers in SpikingJelly, unrolled over ``steps``; logits of the mean spikes of the last layer."""

    def __init__(self, steps: int) -> None:
        from spikingjelly.activation_based import layer, neuron, surrogate

        super().__init__()
        channels, strides = (3, *ALEXNET_WIDTHS), (2, 1, 2, 1, 1)
        self.steps, layers = steps, []
        for source, target, stride in zip(channels, channels[1:], strides):
            layers += [layer.Conv2d(source, target, 3, stride, 1, step_mode="m"),
                       neuron.IFNode(surrogate_function=surrogate.ATan(), v_reset=None, step_mode="m")]
        self.layers, self.classifier = nn.Sequential(*layers), nn.Linear(256 * 8 * 8, 10)

    def forward(self, x: Tensor) -> Tensor:
        from spikingjelly.activation_based import functional

        functional.reset_net(self)
        return self.classifier(self.layers(x.expand(self.steps, *x.shape)).mean(0).flatten(1))


def contestants(options: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """A training step of each, without the optimizer's, by name."""
    model, inputs, labels, scale = speed.prepared(options)

    def step(network: nn.Module, scale: float = 1.0) -> None:
        network.zero_grad()
        (F.cross_entropy(network(inputs), labels) * scale).backward()

    found = {"SPIDE, 30 + 250 steps": lambda: step(model, scale)}
    for steps in (5, 30):
        unrolled = ThroughTime(steps)
        found[f"through time, {steps} steps"] = lambda unrolled=unrolled: step(unrolled)
    return found


def peak_memory(options: argparse.Namespace, name: str, answer: multiprocessing.Queue) -> None:
    """GiB that one step of a contestant takes at most, beyond what its process holds before."""
    step = contestants(options)[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step()
    answer.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)


if __name__ == "__main__":
    parser = speed.parser(__doc__)
    parser.set_defaults(model="alexnetf", engines=["event"])
    options = parser.parse_args()
    seconds, steps = {}, contestants(options)
    for repeat in range(options.repeats + 1):  # the first is a warm-up
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if repeat:
                seconds.setdefault(name, []).append(time.perf_counter() - start)
    spawn = multiprocessing.get_context("spawn")
    print(f"AlexNet-F's layers, batch {options.batch}, weights {options.resume or 'fresh'}; "
          f"{speed.describe(torch.device('cpu'))}\n\n| training step | seconds | peak memory, GiB |\n|---|---|---|")
    for name, own in seconds.items():
        answer = spawn.Queue()
        process = spawn.Process(target=peak_memory, args=(options, name, answer))
        process.start()
        print(f"| {name} | {statistics.median(own):.2f} | {answer.get():.2f} |", flush=True)
        process.join()
