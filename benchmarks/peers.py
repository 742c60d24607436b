"""A training step beside backpropagation through time, which most of the field trains with: SpikingJelly's IF neurons.

    python -m benchmarks.peers [--batch 16] [--path DATA] [--resume FILE]

Both take AlexNet-F's five convolutions and its classifier; SpikingJelly's network has no feedback, as it has none to
offer. Steps are taken in turn in one process, peak memory in a process for each. SpikingJelly is no requirement of this
repository: ``pip install spikingjelly`` first.
"""
import argparse
import multiprocessing
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

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
    own = speed.prepared(options)
    own.model.network.engine = "event"

    def step(network: nn.Module, scale: float) -> None:
        network.zero_grad()
        (F.cross_entropy(network(own.inputs), own.labels) * scale).backward()

    return {"SPIDE, 30 + 250 steps": partial(step, own.model, own.scale),
            **{f"through time, {steps} steps": partial(step, ThroughTime(steps), 1.0) for steps in (5, 30)}}


def resident(kind: str) -> int:
    """KiB that this process holds now, 'VmRSS', or held at most, 'VmHWM', as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind))


def peak_memory(options: argparse.Namespace, name: str, answer: multiprocessing.Queue) -> None:
    """GiB that one step of a contestant takes at most, beyond what its process holds before."""
    contestants(argparse.Namespace(**{**vars(options), "batch": 1}))[name]()  # compiles, which takes memory too
    step = contestants(options)[name]
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    step()
    answer.put((resident("VmHWM") - before) / 2**20)


if __name__ == "__main__":
    options = speed.parser(__doc__, "batch", "path", "resume", "drive", "repeats", "seed", model="alexnetf",
                           device="cpu").parse_args()
    steps = contestants(options)
    seconds = {name: [] for name in steps}
    for _ in range(options.repeats + 1):
        for name, step in steps.items():
            seconds[name].append(speed.timed(step))
    spawn = multiprocessing.get_context("spawn")
    print(f"AlexNet-F's layers, batch {options.batch}, weights {options.resume or 'fresh'}; "
          f"{speed.describe(torch.device('cpu'))}\n\n| training step | seconds | peak memory, GiB |\n|---|---|---|")
    for name, own in seconds.items():  # of which the first is a warm-up
        answer = spawn.Queue()
        process = spawn.Process(target=peak_memory, args=(options, name, answer))
        process.start()
        print(f"| {name} | {statistics.median(own[1:]):.2f} | {answer.get():.2f} |", flush=True)
        process.join()
