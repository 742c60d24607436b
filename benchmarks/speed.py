"""Seconds for the two simulations of a training iteration, per engine, and their ratio, measured in turn in one run.

    python -m benchmarks.speed --model alexnetf --batch 16 --engines dense event [--path DATA] [--resume FILE]
    python -m benchmarks.speed --model alexnetf --batch 128 --device cuda --engines dense cuda:tf32 cuda:bf16

Images are real where --path has them (MNIST, CIFAR-10, converted CIFAR10-DVS), otherwise noise, which is said.
"""
import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import cifar_alexnetf
import cifar_cifarnetf
import dvs_cifar_convnetf
import mnist_lenet
from models import SpikingClassifier
from modules import LIF, SpikeStatistics, TernaryCouple
from modules.circuit import Circuit
from modules.engines import BackwardResult, Engine, ForwardResult
from modules.engines.cuda.engine import CudaEngine
from modules.engines.dense import DenseEngine
from modules.engines.routes import route
from utils import checkpoint
from utils.cli import Arguments

PEAK, BANDWIDTH = 790e12, 4.3e12  # bfloat16 operations and bytes per second that a GPU of the kind of H200 reaches
SCRIPTS = {"lenet": mnist_lenet, "alexnetf": cifar_alexnetf, "cifarnetf": cifar_cifarnetf,
           "convnetf": dvs_cifar_convnetf}


def arguments(name: str, batch: int, *flags: object) -> tuple[Arguments, float]:
    """The arguments of a script for a batch, with its own defaults and further flags; its ``scale_factor / batch``."""
    experiment = SCRIPTS[name].EXPERIMENT
    own = experiment.arguments()
    flags = ("--train-batch", batch, "--test-batch", batch, "-j", 0, "--engine", "dense", *flags)
    return experiment.arguments([str(flag) for flag in flags]), own.scale_factor / own.train_batch


def data(name: str, args: Arguments, options: argparse.Namespace) -> tuple[Tensor, Tensor, str]:
    """A training batch: inputs, labels, and where they come from; noise unless ``options.path`` names a folder."""
    if options.path is not None:
        inputs, labels, *_ = next(iter(SCRIPTS[name].EXPERIMENT.loaders(args, seed=options.seed)[0]))
        return inputs, labels, f"training data in {options.path}"
    shape = {"lenet": (1, 28, 28), "convnetf": (args.time_step, 2, 48, 48)}.get(name, (3, 32, 32))
    images = torch.randn(args.train_batch, *shape)
    return (images > 1).float() if name == "convnetf" else images, torch.arange(args.train_batch) % 10, "noise"


def one_iteration(model: SpikingClassifier, inputs: Tensor, labels: Tensor,
                  scale: float) -> tuple[dict[str, float], SpikeStatistics]:
    """Seconds of a forward and of a backward pass, weight gradients included, and the spikes that they took."""
    statistics_ = SpikeStatistics()
    model.zero_grad()
    synchronise = torch.cuda.synchronize if inputs.is_cuda else lambda: None
    times = []
    for stage in ("forward", "backward"):
        synchronise()
        start = time.perf_counter()
        if stage == "forward":
            loss = F.cross_entropy(model(inputs, statistics_, keys=torch.arange(len(labels))), labels)
        else:
            (loss * scale).backward()
        synchronise()
        times.append(time.perf_counter() - start)
    return dict(zip(("forward", "backward"), times)), statistics_


class Compiled(DenseEngine):
    """The dense engine with the updates of its neurons compiled; its convolutions are a library's in any case."""

    name = "dense:compiled"
    steps = {kind: torch.compile(kind.step_) for kind in (LIF, TernaryCouple)}

    def simulate_forward(self, circuit: Circuit, x: Tensor) -> ForwardResult:
        with mock.patch.object(LIF, "step_", self.steps[LIF]):
            return super().simulate_forward(circuit, x)

    def simulate_backward(self, circuit: Circuit, gradient: Tensor, masks: list[Tensor]) -> BackwardResult:
        with mock.patch.object(TernaryCouple, "step_", self.steps[TernaryCouple]):
            return super().simulate_backward(circuit, gradient, masks)


def engine_of(name: str) -> Engine | str:
    """The engine that an entry of ``--engines`` means."""
    engine, *rest = name.split(":")
    if name == Compiled.name:
        return Compiled()
    return CudaEngine(rest[0], skip="whole" not in rest) if engine == "cuda" and rest else engine


def measure(options: argparse.Namespace) -> dict:
    """All figures, in plain types."""
    torch.manual_seed(options.seed)
    args, usual_drive = arguments(options.model, options.batch, *(["--path", options.path] if options.path else []))
    model = SCRIPTS[options.model].build_model(args).train()
    if options.resume:
        model.load_state_dict(checkpoint.load(options.resume).contents["state_dict"])
    inputs, labels, source = data(options.model, args, options)
    device = torch.device(options.device)
    model, inputs, labels = model.to(device), inputs.to(device), labels.to(device)
    drive = options.drive or usual_drive
    engines = {engine: engine_of(engine) for engine in options.engines}
    runs, memory = {engine: [] for engine in engines}, {}
    for repeat in range(options.repeats + 1):  # the first is a warm-up
        for engine in engines:
            model.network.engine = engines[engine]
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            seconds, spikes = one_iteration(model, inputs, labels, drive * options.batch)
            if repeat:
                runs[engine].append(seconds)
            if device.type == "cuda":
                memory[engine] = torch.cuda.max_memory_allocated() / 2**30
    medians = {engine: {stage: statistics.median(run[stage] for run in own) for stage in own[0]}
               for engine, own in runs.items()}
    for own in medians.values():
        own["both"] = own["forward"] + own["backward"]
    first = medians[options.engines[0]]
    return {"model": options.model, "batch": options.batch, "steps": [args.time_step, args.time_step_back],
            "inputs": source, "weights": options.resume or "fresh", "scale_factor / batch": drive,
            "repeats": options.repeats, "machine": describe(device),
            "forward densities": np.round(spikes.forward_rates.tolist(), 4).tolist(),
            "backward densities": np.round(spikes.backward_rates.tolist(), 6).tolist(),
            "floor, s": round(floor(model, inputs), 4) if device.type == "cuda" else None,
            "peak memory, GiB": {engine: round(peak, 2) for engine, peak in memory.items()},
            "seconds": medians,
            "ratio": {engine: {stage: first[stage] / own[stage] for stage in own} for engine, own in medians.items()}}


def floor(model: SpikingClassifier, inputs: Tensor) -> float:
    """Seconds that the convolutions of both phases take at ``PEAK``, and moving what neurons hold at ``BANDWIDTH``."""
    network = model.network
    circuit, _ = network.bind(inputs[:1])
    products = sum(route(c).multiplications for c in circuit.connections[1:]) * len(inputs)
    steps = network.time_step + network.time_step_back
    moved = 19 * model.num_neurons * len(inputs)  # bytes: potential and trace, read and written, and spikes
    return steps * (2 * products / PEAK + moved / BANDWIDTH)


def describe(device: torch.device) -> str:
    """What the figures were measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return f"{name}, {torch.get_num_threads()} threads, Python {platform.python_version()}, PyTorch {torch.__version__}"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SCRIPTS, default="alexnetf")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--engines", nargs="+", default=["dense", "event"],
                        help="the first is what others compare to; cuda:bf16 is the CUDA engine in a precision, "
                             "cuda:bf16:whole the same without leaving out products where no spike arrives, "
                             "dense:compiled the dense one under torch.compile")
    parser.add_argument("--path", help="folder of the data sets")
    parser.add_argument("--resume", help="checkpoint to take the weights from")
    parser.add_argument("--drive", type=float, help="scale_factor / batch; the experiment's own unless given")
    parser.add_argument("--repeats", type=int, default=3, help="measured iterations, of which the median counts")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    try:
        found = measure(options)
    except ValueError as mistake:
        parser.error(str(mistake))
    seconds, ratio = found.pop("seconds"), found.pop("ratio")
    for key, value in found.items():
        print(f"{key}: {value}")
    print(f"\n{'engine':12} {'forward s':>10} {'backward s':>11} {'both s':>9}   ratio: forward  backward  both")
    for engine, own in seconds.items():
        r = ratio[engine]
        print(f"{engine:12} {own['forward']:10.3f} {own['backward']:11.3f} {own['both']:9.3f}   {r['forward']:14.2f} "
              f"{r['backward']:9.2f} {r['both']:5.2f}")
    if options.json:
        options.json.write_text(json.dumps({**found, "seconds": seconds, "ratio": ratio}, indent=1) + "\n")
