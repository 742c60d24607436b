"""The trial of a fast engine on a device: small networks, spike by spike against the dense engine.

    python -m modules.engines.trial [ENGINE] [--device DEVICE]

Prints each case with its verdict and its time; exits with status 1 if one failed. The networks use every kind of
kernel. Weights, inputs and gradients are multiples of a power of two, so that sums are exact in whatever order: one
spike that differs is a fault. This file stands above the engines, as it builds networks: they ask it when first used.
"""
import argparse
import copy
import functools
import hashlib
import json
import math
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from modules import engines
from modules.engines.dense import DENSE
from modules.engines.interface import Engine
from modules.feedback_snn import FeedbackSNN
from modules.neurons import IF, LIF, TernaryCouple
from modules.synapses import AvgPool2d, Conv2d, ConvTranspose2d, Linear

LEAKY = LIF(v_threshold=0.25, leak=0.5)


@dataclass(frozen=True)
class Case:
    """A network, and calls of it one after another.

    Attributes:
        name: what it is there for; network: makes it; shape: of an input image or frame.
        batches: sizes of the batches of the calls, which all have weights of their own.
        bits: significant ones of a weight; with few of them, potentials often stand right at a threshold.
    """

    name: str
    network: Callable[..., FeedbackSNN]
    shape: tuple[int, ...] = (2, 9, 11)
    batches: tuple[int, ...] = (2, 2)
    bits: int = 11  # which all precisions hold but bf16


def network(*synapses, feedback=None, steps: tuple[int, int], neuron: LIF = IF(),
            events: bool = False) -> FeedbackSNN:
    """A network of few steps, forward and backward, whose constants are powers of two."""
    return FeedbackSNN(input=synapses[0], layers=synapses[1:], feedback=feedback, neuron=neuron,
                       couple=TernaryCouple(v_threshold=2**-2), time_step=steps[0],
                       time_step_back=steps[1], event_input=events)


CASES = (
    Case("feedback that spreads, stride 2, dropout, a last smaller batch", lambda: network(
        Conv2d(2, 5, 3, stride=2, dropout=0.5), Conv2d(5, 20, 3, stride=2, dropout=0.5),
        feedback=ConvTranspose2d(20, 5, 3, stride=2, dropout=0.5), steps=(4, 5)), (2, 17, 19), (3, 3, 2)),
    Case("leaky neurons, feedback through pooling", lambda: network(
        Conv2d(2, 6, 3, stride=2), ConvTranspose2d(6, 6, 2, stride=2, padding=0), feedback=AvgPool2d(2, dropout=0.5),
        neuron=LEAKY, steps=(4, 4)), (2, 15, 18), bits=2),
    Case("pooling, linear, no feedback, dropout", lambda: network(
        Conv2d(2, 6, 3), AvgPool2d(2, dropout=0.5), Linear(6 * 5 * 9, 30), neuron=IF(v_threshold=0.5),
        steps=(17, 17)), (2, 11, 19)),
    Case("events, feedback of a layer to itself, more pixels than a block", lambda: network(
        Conv2d(2, 3, 3), feedback=Conv2d(3, 3, 3), events=True, steps=(9, 4)), (2, 33, 35)),
    Case("events, leaky neurons, no feedback, more pixels than a block", lambda: network(
        Conv2d(2, 3, 1), Conv2d(3, 2, 3), events=True, neuron=LEAKY, steps=(9, 9)), (2, 33, 35)),
    Case("more channels than a block, feedback", lambda: network(
        Conv2d(2, 130, 3), Conv2d(130, 70, 2, padding=0), feedback=ConvTranspose2d(70, 130, 2, padding=0),
        steps=(3, 4)), (2, 8, 9)),
    Case("more channels than a block, no feedback", lambda: network(
        Linear(6, 130), Linear(130, 70), steps=(8, 8)), (6, 1, 1)),
)


class Differs(ArithmeticError):
    """An engine found other spikes than the dense one."""


def check(case: Case, engine: Engine, device: torch.device) -> None:
    """Simulate a case with both engines, forward and backward.

    Raises:
        Differs: their spikes are not the same; and whatever the engine raises.
    """
    with torch.device("meta"):  # no random numbers are drawn there
        net = case.network()
    net = net.float().to_empty(device=device)
    bits = min(case.bits, 8) if getattr(engine, "precision", None) == "bf16" else case.bits
    results = []
    for call, batch in enumerate(case.batches, start=1):
        draw = Draw(call, device)
        with torch.no_grad():
            for parameter in net.parameters():
                fan_in = parameter[0].numel()
                parameter.copy_(draw(parameter.shape, bits, 2.0 ** -round(math.log2(fan_in) / 2)))
        frames = [net.time_step] if net.event_input else []
        keys = torch.arange(batch, device=device) + 100 * call
        circuit, x = net.bind(draw((batch, *frames, *case.shape), 3, 2.0), keys=keys)
        gradient = draw((batch, *circuit.feedforward[-1].output_shape), min(bits, 8), 1.0)
        gradient[0] /= 4  # so that in some steps this sample is silent
        expected, found = (e.simulate_forward(circuit, x) for e in (DENSE, engine))
        results += [(f"call {call}, forward, numbers of spikes", expected.counts, found.counts, 0.0),
                    (f"call {call}, forward, rates", expected.rates, found.rates, 1e-6)]
        _same(results[-2:])
        masks = [(count > 0) & (count < net.time_step) for count in expected.counts]
        expected, found = (e.simulate_backward(circuit, gradient, masks) for e in (DENSE, engine))
        results += [(f"call {call}, backward, numbers of spikes", [expected.fired], [found.fired], 0.0),
                    (f"call {call}, backward, rates", expected.betas, found.betas, 1e-6)]
        _same(results[-2:])
    _same(results)  # once more, as later calls must not change what earlier ones found


class Draw:
    """Random multiples of a power of two, from a generator of their own."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._generator, self._device = torch.Generator().manual_seed(seed), device

    def __call__(self, shape: tuple[int, ...], bits: int, limit: float) -> Tensor:
        """Numbers of so many bits between ``-limit`` and ``limit``, ``limit`` a power of two; few of them are 0."""
        most = 2**bits - 1
        whole = torch.randint(-most, most + 1, shape, generator=self._generator)
        return whole.to(self._device, torch.float32) * (limit / 2**bits)


def _same(results: list[tuple[str, list[Tensor], list[Tensor], float]]) -> None:
    """Compare tensors of all layers: names, what is expected, what was found, and the largest difference.

    Raises:
        Differs: NaN differs from everything.
    """
    for what, expected, found, tolerance in results:
        for layer, (a, b) in enumerate(zip(expected, found, strict=True)):
            if a.shape != b.shape:
                raise Differs(f"{what}: shape {tuple(b.shape)} in place of {tuple(a.shape)} of tensor {layer}")
            wrong = ~((a - b).abs() <= tolerance)
            if wrong.any():
                raise Differs(f"{what}: {int(wrong.sum())} of {wrong.numel()} differ in tensor {layer}")


@dataclass(frozen=True)
class Result:
    """What a case came to: its seconds, and the error that it ended in, or None."""

    case: Case
    seconds: float
    error: Exception | None


def run(engine: Engine, device: torch.device) -> Iterator[Result]:
    """Try a copy of an engine, case by case, and give its memory back; no random generator is touched."""
    own = copy.deepcopy(engine)
    for case in CASES:
        start, failure = time.perf_counter(), None
        try:
            with _plain_convolutions():
                check(case, own, device)
        except Exception as error:  # whatever a compiler, a driver or a kernel stumbles over
            failure = error
        yield Result(case, time.perf_counter() - start, failure)
    del own
    if device.type == "cuda":
        torch.cuda.empty_cache()


@functools.cache
def verdict(engine: Engine, device: torch.device) -> str | None:
    """Why an engine cannot be trusted on a device, in words, or None. It is tried once in a process, and not at all
    where the same versions have proved themselves on such a device before."""
    proof = Proof(engine, device)
    if proof.exists():
        return None
    for result in run(engine, device):
        if result.error is not None:
            return (f"it failed its trial on {_name(device)} in the case '{result.case.name}' "
                    f"({_in_one_line(result.error)}); python -m modules.engines.trial {engine.name} shows more")
    proof.write()
    return None


class Proof:
    """A file beside the compiled kernels: an engine has passed its trial with these versions on such a device.

    A failure is not kept, because its cause may be gone the next time. Where the folder cannot be read or written,
    there is no proof, and no harm.
    """

    def __init__(self, engine: Engine, device: torch.device) -> None:
        import triton  # only engines that need it have a proof

        sources = sorted(Path(engines.__file__).parents[1].rglob("*.py"))
        gpu = device.type == "cuda"
        key = {"engine": engine.name, "device": _name(device),
               "capability": torch.cuda.get_device_capability(device) if gpu else None, "driver": _driver(),
               "torch": torch.__version__, "triton": triton.__version__, "cuda": torch.version.cuda,
               "sources": hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()}
        self._content = json.dumps(key, indent=1).encode()
        name = hashlib.sha256(self._content).hexdigest()[:32] + ".json"
        self._file = Path(triton.knobs.cache.dir) / "spide_fsnn_trial" / name

    def exists(self) -> bool:
        """Whether it is there, whole."""
        try:
            return self._file.read_bytes() == self._content
        except OSError:
            return False

    def write(self) -> None:
        """Write it, in one piece."""
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._file.parent, delete=False) as file:
                file.write(self._content)
            os.replace(file.name, self._file)
        except OSError:
            pass


@contextmanager
def _plain_convolutions() -> Iterator[None]:
    """Let PyTorch convolve by sums of products: cuDNN may transform images, and so round what is exact."""
    before, torch.backends.cudnn.enabled = torch.backends.cudnn.enabled, False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"'{device.type}'"


def _driver() -> str:
    """What the driver says of itself; PyTorch does not ask it."""
    try:
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return ""


def _in_one_line(error: Exception) -> str:
    """An error's type and message; of a long one, as compilers write them, both ends."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return text if len(text) <= 300 else f"{text[:140]} ... {text[-150:]}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m modules.engines.trial", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu = torch.cuda.is_available()
    parser.add_argument("engine", nargs="?", default="cuda" if gpu else "event", help="such as event or cuda:bf16; "
                        "cuda where there is a GPU, else event, unless given")
    parser.add_argument("--device", type=torch.device, default="cuda" if gpu else "cpu")
    args = parser.parse_args()
    try:
        engine = engines.require(args.engine)
    except ValueError as error:
        parser.error(str(error))
    if engine is DENSE:
        parser.error("dense is what others are compared with: name another engine")
    device = args.device if engine.name != "event" else torch.device("cpu")
    obstacle = engine.obstacle(device, torch.float32)
    if obstacle is not None:
        sys.exit(f"{engine.name} cannot run here: {obstacle}")
    print(f"{engine.name} on {_name(device)}, PyTorch {torch.__version__}", flush=True)
    failed, seconds = 0, 0.0
    for result in run(engine, device):
        print(f"  {result.case.name:64} {'passed' if result.error is None else 'FAILED'} {result.seconds:7.2f} s",
              flush=True)
        seconds += result.seconds
        if isinstance(result.error, Differs):
            print(f"    {result.error}", flush=True)
        elif result.error is not None:
            print("    " + "".join(traceback.format_exception(result.error)).strip().replace("\n", "\n    "))
        failed += result.error is not None
    print(f"{len(CASES) - failed} of {len(CASES)} cases passed in {seconds:.1f} s")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
