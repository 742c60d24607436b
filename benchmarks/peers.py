"""A training step beside backpropagation through time, which most of the field trains with: SpikingJelly's IF neurons.

    python -m benchmarks.peers [--batch 16] [--path DATA] [--resume FILE]

Both take AlexNet-F's five convolutions and its classifier; SpikingJelly's network has no feedback, as it has none to
offer. Steps are taken in turn in one process, peak memory in a process for each. SpikingJelly is no requirement of this
repository: ``pip install spikingjelly`` first.
"""
import argparse
import re
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed import describe, one_iteration, parser, prepared, timed
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


def contestants(options: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """A training step of each, without the optimizer's, by name."""
    own = prepared(options)
    own.model.network.engine = "event"

    def through_time(network: nn.Module) -> None:
        network.zero_grad()
        F.cross_entropy(network(own.inputs), own.labels).backward()

    return {"SPIDE, 30 + 250 steps": partial(one_iteration, own),
            **{f"through time, {steps} steps": partial(through_time, ThroughTime(steps)) for steps in (5, 30)}}


def peak_memory(options: argparse.Namespace, name: str) -> float:
    """GiB that one step of a contestant takes at most, beyond what this process, a new one on Linux, holds before."""
    def resident(kind: str) -> int:
        return int(re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])

    contestants(argparse.Namespace(**{**vars(options), "batch": 1}))[name]()  # compiles, which takes memory too
    step = contestants(options)[name]
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    step()
    return (resident("VmHWM") - before) / 2**20


if __name__ == "__main__":
    options = parser(__doc__, "batch", "path", "resume", "drive", "repeats", "seed", model="alexnetf",
                     device="cpu").parse_args()
    steps = contestants(options)
    runs = [{name: timed(step) for name, step in steps.items()} for _ in range(options.repeats + 1)]
    print(f"AlexNet-F's layers, batch {options.batch}, weights {options.resume or 'fresh'}; "
          f"{describe(torch.device('cpu'))}\n\n| training step | seconds | peak memory, GiB |\n|---|---|---|")
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        for name, memory in zip(steps, pool.map(partial(peak_memory, options), steps)):
            seconds = statistics.median(run[name] for run in runs[1:])  # the first is a warm-up
            print(f"| {name} | {seconds:.2f} | {memory:.2f} |", flush=True)
