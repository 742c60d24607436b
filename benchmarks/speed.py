"""What engines take for a training iteration, seconds and memory, and how far apart they are, measured in turn.

    python -m benchmarks.speed --model alexnetf --batch 16 --engines dense event event+ide [--path DATA] [--resume FILE]
    python -m benchmarks.speed --model alexnetf --batch 128 --device cuda --engines dense cuda:tf32 cuda:bf16

Images are real with --path (MNIST, CIFAR-10, converted CIFAR10-DVS), noise without, which is said. Flags of the model's
script may follow, as -t 8; with --path, --test-limit N adds accuracy and loss on N test images. Where the engines named
are enough for it, the goals of the CUDA engine follow, and whether the figures reach them.

What the benchmarks share stands here too: a clock, the machine in words.
"""
import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

import cifar_alexnetf
import cifar_cifarnetf
import dvs_cifar_convnetf
import mnist_lenet
from models import SpikingClassifier
from modules import LIF, SpikeStatistics, TernaryCouple
from modules.engines import Engine
from modules.engines.cuda.engine import CudaEngine
from modules.engines.dense import DenseEngine
from modules.engines.routes import route
from modules.feedback_snn import METHODS
from utils import checkpoint
from utils.pages import table

PEAK, BANDWIDTH = 790e12, 4.3e12  # bfloat16 operations and bytes per second that a GPU of the kind of H200 reaches
SPEEDUP, FLOORS, EPOCH = 6, 2.5, 35  # goals: times dense; times the floor; seconds for the simulations of an epoch
SAMPLES = 50_000  # of an epoch of CIFAR-10
STAGES = ("forward", "backward", "both")
SCRIPTS = {"lenet": mnist_lenet, "alexnetf": cifar_alexnetf, "cifarnetf": cifar_cifarnetf,
           "convnetf": dvs_cifar_convnetf}


@dataclass(frozen=True)
class Workload:
    """A network and a batch to train it on, from ``source``; ``scale`` is what its loss is multiplied with."""

    model: SpikingClassifier
    inputs: Tensor
    labels: Tensor
    scale: float
    source: str
    test_loader: DataLoader | None  # where images to test are asked for


def prepared(options: argparse.Namespace, *flags: str) -> Workload:
    """What the options (model, batch, path, resume, drive, device and seed) and flags of the model's script ask for."""
    experiment = SCRIPTS[options.model].EXPERIMENT
    own = experiment.arguments()
    path = ("--path", options.path) if options.path else ()
    flags = ("--train-batch", options.batch, "--test-batch", options.batch, "-j", 0, "--engine", "dense", *path, *flags)
    args = experiment.arguments([str(flag) for flag in flags])
    torch.manual_seed(options.seed)
    model, source, test_loader = experiment.build_model(args).train(), "noise", None
    if options.resume:
        model.load_state_dict(checkpoint.load(options.resume).contents["state_dict"])
    if options.path:
        train_loader, tests = experiment.loaders(args, seed=options.seed)
        test_loader = tests if args.test_limit else None
        inputs, labels, *_ = next(iter(train_loader))
        source = f"training data in {options.path}"
    else:
        shape = {"lenet": (1, 28, 28), "convnetf": (args.time_step, 2, 48, 48)}.get(options.model, (3, 32, 32))
        inputs, labels = torch.randn(options.batch, *shape), torch.arange(options.batch) % 10
        inputs = (inputs > 1).float() if options.model == "convnetf" else inputs
    scale = (options.drive or own.scale_factor / own.train_batch) * options.batch
    return Workload(model.to(options.device), inputs.to(options.device), labels.to(options.device), scale, source,
                    test_loader)


def timed(work: Callable[..., object], *arguments: object) -> float:
    """Seconds of a call, until the GPU, if there is one at work, is done with it."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    start = time.perf_counter()
    work(*arguments)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def one_iteration(own: Workload) -> tuple[dict[str, float], SpikeStatistics]:
    """Seconds of a forward and of a backward pass, weight gradients included, and the spikes that they took."""
    spikes, losses, keys = SpikeStatistics(), [], torch.arange(len(own.labels))
    own.model.zero_grad()
    seconds = {
        "forward": timed(lambda: losses.append(F.cross_entropy(own.model(own.inputs, spikes, keys=keys), own.labels))),
        "backward": timed(lambda: (losses[0] * own.scale).backward())}
    return seconds, spikes


class Compiled(DenseEngine):
    """The dense engine with the updates of its neurons compiled; its convolutions are a library's in any case."""

    name = "dense:compiled"
    simulate_forward, simulate_backward = (
        mock.patch.object(kind, "step_", torch.compile(kind.step_))(simulate) for kind, simulate in
        ((LIF, DenseEngine.simulate_forward), (TernaryCouple, DenseEngine.simulate_backward)))


def engine_and_method(entry: str) -> tuple[Engine | str, str]:
    """What an entry of ``--engines`` means; a ValueError where there is no such method or precision."""
    name, _, method = entry.partition("+")
    if (method or "spide") not in METHODS:
        raise ValueError(f"there is no method '{method}' as in '{entry}': choose one of {', '.join(METHODS)}")
    match name.split(":"):
        case ["dense", "compiled"]:
            engine = Compiled()
        case ["cuda", precision, *rest]:
            engine = CudaEngine(precision, skip="whole" not in rest)
        case _:
            engine = name
    return engine, method or "spide"


@torch.no_grad()
def tested(own: Workload) -> tuple[float, float]:
    """Accuracy in percent and mean loss on test data."""
    own.model.eval()
    pairs = [(own.model(inputs.to(own.inputs.device)), labels.to(own.inputs.device))
             for inputs, labels, _ in own.test_loader]
    logits, labels = map(torch.cat, zip(*pairs))
    own.model.train()
    return 100 * (logits.argmax(1) == labels).double().mean().item(), F.cross_entropy(logits, labels).item()


def relative(found: Tensor | None, exact: Tensor | None) -> list[float] | None:
    """Differences of the rates of each layer, relative to exact ones."""
    return None if found is None or exact is None else ((found - exact).abs() / exact.clamp(min=1e-12)).tolist()


def measure(options: argparse.Namespace, *flags: str) -> dict[str, Any]:
    """All figures, in plain types; arguments as of :func:`prepared`."""
    entries = {entry: engine_and_method(entry) for entry in options.engines}
    own = prepared(options, *flags)
    network, device = own.model.network, own.inputs.device
    runs, spikes, memory, gradients, tests = {entry: [] for entry in entries}, {}, {}, {}, {}
    alone = torch.cuda.memory_allocated()  # before any engine has allocated what it keeps; 0 without a GPU
    for number in range(options.repeats + 1):
        for entry, (network.engine, network.method) in entries.items():
            before = torch.cuda.memory_allocated()
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            seconds, spikes[entry] = one_iteration(own)
            runs[entry].append(seconds)
            if device.type == "cuda" and number == 0:
                memory[entry] = round((alone + torch.cuda.max_memory_allocated() - before) / 2**30, 2)
            gradients[entry] = torch.cat([p.grad.flatten() for p in network.parameters()]).cpu()
            if own.test_loader and number == options.repeats:
                tests[entry] = tested(own)
    medians = {}
    for entry, (_, *found) in runs.items():  # without the first, a warm-up
        forward, backward = (statistics.median(run[stage] for run in found) for stage in STAGES[:2])
        medians[entry] = dict(zip(STAGES, (forward, backward, forward + backward)))
    exact, target, first = (values[options.engines[0]] for values in (spikes, gradients, medians))
    spiking = [found for found in spikes.values() if found.backward_rates is not None]  # those of IDE are none
    last = [*spikes.values(), *spiking][-1]
    return {"model": options.model, "batch": options.batch, "steps": [network.time_step, network.time_step_back],
            "inputs": own.source, "weights": options.resume or "fresh",
            "scale_factor / batch": own.scale / options.batch, "repeats": options.repeats, "machine": describe(device),
            **{f"{way} densities": rates if rates is None else [round(rate, 6) for rate in rates.tolist()]
               for way, rates in (("forward", last.forward_rates), ("backward", last.backward_rates))},
            "sweeps": {entry: int(found.sweeps) for entry, found in spikes.items() if found.sweeps is not None},
            "floor, s": round(floor(own), 4) if device.type == "cuda" else None,
            "peak memory, GiB": memory, "test accuracy and loss": tests, "seconds": medians,
            "differences": {entry: {
                "forward": relative(found.forward_rates, exact.forward_rates),
                "backward": relative(found.backward_rates, exact.backward_rates),
                "gradient": ((gradients[entry] - target).norm() / target.norm().clamp(min=1e-30)).item()}
                for entry, found in spikes.items()},
            "ratio": {entry: {stage: first[stage] / found[stage] for stage in found}
                      for entry, found in medians.items()}}


def goals(found: dict[str, Any]) -> Iterator[tuple[str, float, bool]]:
    """Each goal of the CUDA engine in words, what was measured, and whether that reaches it."""
    seconds = {entry: own["both"] for entry, own in found["seconds"].items()}
    for engine in ("dense", "dense:compiled"):
        ratio = seconds[engine] / seconds["cuda:tf32"]
        yield f"tf32 is at least {SPEEDUP} times as fast as {engine}", ratio, ratio >= SPEEDUP
    ratio = found["peak memory, GiB"]["cuda:tf32"] / found["peak memory, GiB"]["dense"]
    yield "peak memory of tf32 is at most that of dense", ratio, ratio <= 1
    if found["model"] == "alexnetf":
        floors = seconds["cuda:bf16"] / found["floor, s"]
        epoch = -(-SAMPLES // found["batch"]) * seconds["cuda:tf32"]
        yield f"bf16 takes at most {FLOORS} times the floor", floors, floors <= FLOORS
        yield f"the simulations of an epoch of CIFAR-10 at tf32 take at most {EPOCH} s", epoch, epoch <= EPOCH


def floor(own: Workload) -> float:
    """Seconds that the convolutions of both phases take at ``PEAK``, and moving what neurons hold at ``BANDWIDTH``."""
    network, batch = own.model.network, len(own.inputs)
    circuit, _ = network.bind(own.inputs[:1])
    products = sum(route(c).multiplications for c in circuit.connections[1:]) * batch
    moved = 19 * own.model.num_neurons * batch  # bytes: potential and trace, read and written, and spikes
    return (network.time_step + network.time_step_back) * (2 * products / PEAK + moved / BANDWIDTH)


def describe(device: torch.device) -> str:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else name
    return f"{name}, {torch.get_num_threads()} threads, Python {platform.python_version()}, PyTorch {torch.__version__}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", choices=SCRIPTS, default="alexnetf")
    add("--batch", type=int, default=16)
    add("--engines", nargs="+", default=["dense", "event"],
        help="the first is what others compare to; cuda:bf16 is the CUDA engine in a precision, cuda:bf16:whole the "
             "same without leaving out products where no spike arrives; event+ide is an engine with the backward pass "
             "in floats, dense:compiled the dense one under torch.compile")
    add("--path", help="folder of the data sets; noise unless given")
    add("--resume", help="checkpoint to take the weights from")
    add("--drive", type=float, help="scale_factor / batch; the experiment's own unless given")
    add("--repeats", type=int, default=3, help="measurements, of which the median counts")
    add("--device", default="cpu")
    add("--seed", type=int, default=0)
    add("--float32", action="store_true", help="no TF32 in the dense engine and outside of simulations on a GPU")
    add("--json", type=Path, help="write the figures to this file too")
    options, further = parser.parse_known_args()
    torch.backends.cudnn.allow_tf32 = not options.float32
    try:
        found = measure(options, *further)
    except ValueError as mistake:
        parser.error(str(mistake))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    seconds, ratio, differences = (found.pop(name) for name in ("seconds", "ratio", "differences"))
    for key, value in found.items():
        print(f"{key}: {value}")
    columns = [f"{stage}{unit}" for unit in (", s", ", ratio") for stage in STAGES]
    rows = ([entry, *(f"{own:.3f}" for own in seconds[entry].values()),
             *(f"{own:.2f}" for own in ratio[entry].values())] for entry in seconds)
    print(f"\n{table(['engine', *columns], rows)}\n")
    rows = ([entry, *(own[way] and " ".join(f"{rate:.1e}" for rate in own[way]) for way in ("forward", "backward")),
             f"{own['gradient']:.2g}"] for entry, own in differences.items())
    print(table(["engine", "forward rates, relative difference by layer", "backward rates", "gradient"], rows))
    if {"dense", Compiled.name, "cuda:tf32", "cuda:bf16"} <= seconds.keys() and found["peak memory, GiB"]:
        for goal, figure, reached in goals({**found, "seconds": seconds}):
            print(f"{'reached' if reached else 'MISSED '} {figure:8.2f}  {options.model}: {goal}")
