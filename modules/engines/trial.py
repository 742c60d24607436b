"""The trial of a fast engine on a device: small networks, every unit's number of spikes against the dense engine's.

    python -m modules.engines.trial [ENGINE] [--device DEVICE]

Prints each case with its verdict and its time; exits with status 1 if one failed. The networks use every kind of
kernel. Weights, inputs and gradients are multiples of a power of two, so that sums are exact in whatever order: one
spike more or fewer is a fault. This file stands above the engines, as it builds networks: they ask it when first used.
"""
import argparse
import copy
import functools
import hashlib
import json
import math
import os
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from modules import engines
from modules.engines.dense import DENSE
from modules.engines.interface import Engine
from modules.feedback_snn import FeedbackSNN
from modules.neurons import IF, LIF, TernaryCouple
from modules.synapses import AvgPool2d, Conv2d, ConvTranspose2d, Linear, Synapse


@dataclass(frozen=True)
class Case:
    """A network, and calls of it one after another, which all have weights of their own."""

    name: str  # what it is there for
    network: Callable[[], FeedbackSNN]
    shape: tuple[int, ...]  # of an input image or frame
    batches: tuple[int, ...] = (2,)  # sizes of the batches of the calls
    # Significant ones of a weight, which all precisions hold but bf16; with few, potentials often stand at a threshold.
    bits: int = 11


def network(*synapses: Synapse, feedback: Synapse | None = None, steps: tuple[int, int], neuron: LIF = IF(),
            events: bool = False) -> FeedbackSNN:
    """A network of few steps, forward and backward, whose constants are powers of two."""
    return FeedbackSNN(input=synapses[0], layers=synapses[1:], feedback=feedback, neuron=neuron,
                       couple=TernaryCouple(v_threshold=2**-2), time_step=steps[0],
                       time_step_back=steps[1], event_input=events)


LEAKY = LIF(v_threshold=0.25, leak=0.5)
CASES = (
    Case("leaky neurons, feedback through pooling", lambda: network(
        Conv2d(2, 6, 3, stride=2), ConvTranspose2d(6, 6, 2, stride=2, padding=0), feedback=AvgPool2d(2, dropout=0.5),
        neuron=LEAKY, steps=(4, 4)), (2, 15, 18), (2, 2), bits=2),
    Case("feedback that spreads, stride 2, dropout, a smaller batch", lambda: network(
        Conv2d(2, 5, 3, stride=2, dropout=0.5), Conv2d(5, 20, 3, stride=2, dropout=0.5),
        feedback=ConvTranspose2d(20, 5, 3, stride=2, dropout=0.5), steps=(4, 5)), (2, 17, 19), (3, 2)),
    Case("pooling, linear, no feedback, dropout", lambda: network(
        Conv2d(2, 6, 3), AvgPool2d(2, dropout=0.5), Linear(6 * 2 * 4, 30), neuron=IF(v_threshold=0.5),
        steps=(9, 9)), (2, 5, 9), (2, 2)),
    Case("feedback of a layer to itself", lambda: network(
        Conv2d(2, 3, 3), feedback=Conv2d(3, 3, 3), steps=(4, 3)), (2, 4, 5)),
    Case("events, feedback, more pixels than a block, rows that fall silent", lambda: network(
        Conv2d(2, 2, 3), Conv2d(2, 2, 1), feedback=Conv2d(2, 2, 3), events=True, steps=(9, 9)), (2, 257, 5), bits=3),
    Case("events, leaky neurons, no feedback, more pixels than a block", lambda: network(
        Conv2d(2, 3, 1), Conv2d(3, 8, 2, padding=0), events=True, neuron=LEAKY, steps=(9, 9)), (2, 33, 35)),
    Case("more channels than a block, feedback", lambda: network(
        Conv2d(2, 130, 3), Conv2d(130, 70, 2, padding=0), feedback=ConvTranspose2d(70, 130, 2, padding=0),
        steps=(3, 4)), (2, 4, 5)),
    Case("the same layers without feedback", lambda: network(
        Conv2d(2, 130, 3), Conv2d(130, 70, 2, padding=0), steps=(8, 8)), (2, 4, 5)),
    Case("the same layers with another threshold", lambda: network(
        Conv2d(2, 130, 3), Conv2d(130, 70, 2, padding=0), neuron=IF(v_threshold=0.5), steps=(8, 8)), (2, 4, 5)),
    Case("more steps than a layer takes at once", lambda: network(
        Conv2d(2, 3, 3), AvgPool2d(2), neuron=IF(v_threshold=0.5), steps=(40, 40)), (2, 8, 10)),
)


class Differs(ArithmeticError):
    """An engine found other spikes than the dense one."""


def check(case: Case, engine: Engine, device: torch.device) -> None:
    """Simulate a case with both engines, forward and backward; raises ``Differs``, and whatever the engine raises."""
    with torch.device("meta"):  # no random numbers are drawn there
        net = case.network()
    net = net.float().to_empty(device=device)
    bits = min(case.bits, 8) if getattr(engine, "precision", None) == "bf16" else case.bits
    results = []
    for call, batch in enumerate(case.batches, start=1):
        draw = functools.partial(_draw, torch.Generator().manual_seed(call), device)
        with torch.no_grad():
            for parameter in net.parameters():
                fan_in = parameter[0].numel()
                parameter.copy_(draw(parameter.shape, bits, 2.0 ** -round(math.log2(fan_in) / 2)))
        frames = [net.time_step] if net.event_input else []
        keys = torch.arange(batch, device=device) + 100 * call
        circuit, x = net.bind(draw((batch, *frames, *case.shape), 3, 2.0), keys=keys)
        gradient = draw((batch, *circuit.feedforward[-1].output_shape), min(bits, 8), 1.0)
        gradient[0] /= 4  # so that in some steps this sample is silent
        forward = [e.simulate_forward(circuit, x) for e in (DENSE, engine)]
        masks = circuit.masks(forward[0].counts)
        backward = [e.simulate_backward(circuit, gradient, masks) for e in (DENSE, engine)]
        results += [(f"call {call}, forward", *forward), (f"call {call}, backward", *backward)]
    for what, expected, found in results:  # only now, as later calls must not change what earlier ones found
        try:  # numbers of spikes are whole; rates may be rounded in another order; NaN differs from everything
            torch.testing.assert_close(vars(found), vars(expected), rtol=0, atol=1e-6)
        except AssertionError as error:
            raise Differs(f"{what}: {error}") from None


def _draw(generator: torch.Generator, device: torch.device, shape: tuple[int, ...], bits: int, limit: float) -> Tensor:
    """Random numbers of so many bits between ``-limit`` and ``limit``, a power of two; few of them are 0."""
    most = 2**bits - 1
    whole = torch.randint(-most, most + 1, shape, generator=generator)
    return whole.to(device, torch.float32) * (limit / 2**bits)


class Result(NamedTuple):
    """What a case came to: its seconds, and the error that it ended in, or None."""

    case: Case
    seconds: float
    error: Exception | None


def run(engine: Engine, device: torch.device) -> Iterator[Result]:
    """Try a copy of an engine, case by case, and give its memory back; no random generator is touched."""
    own = copy.deepcopy(engine)
    for case in CASES:
        start, failure, cudnn = time.perf_counter(), None, torch.backends.cudnn.enabled
        torch.backends.cudnn.enabled = False  # it may transform images to convolve them, and so round what is exact
        try:
            check(case, own, device)
        except Exception as error:  # whatever a compiler, a driver or a kernel stumbles over
            failure = error
        finally:
            torch.backends.cudnn.enabled = cudnn
        yield Result(case, time.perf_counter() - start, failure)
    del own
    torch.cuda.empty_cache()  # does nothing without a GPU


@functools.cache
def verdict(engine: Engine, device: torch.device) -> str | None:
    """Why an engine cannot be trusted on a device, in words, or None. It is tried once in a process, and not at all
    where the same versions have proved themselves on such a device before."""
    proof, content = _proof(engine, device)
    if os.path.exists(proof):
        return None
    print(f"trying the engine {engine.name} on {_name(device)}, once for these versions; to compile its kernels may "
          "take a minute", file=sys.stderr, flush=True)  # or its user would wait without a word
    for case, _, error in run(engine, device):
        if error is not None:
            text = f"{type(error).__name__}: {' '.join(str(error).split())}"
            text = text if len(text) <= 300 else f"{text[:140]} ... {text[-150:]}"  # compilers write long ones
            return (f"it failed its trial on {_name(device)} in the case '{case.name}' ({text}); "
                    f"python -m modules.engines.trial {engine.name} shows more")
    with suppress(OSError):  # where nothing can be written, the next process tries the engine again
        proof.parent.mkdir(parents=True, exist_ok=True)
        proof.write_text(content)
    return None


def _proof(engine: Engine, device: torch.device) -> tuple[Path, str]:
    """The file beside the compiled kernels whose name, made from the versions and the device in its content, says that
    the engine has passed its trial with them. A failure is not kept, because its cause may be gone the next time."""
    import triton  # only engines that need it have a proof

    sources = sorted(Path(engines.__file__).parents[1].rglob("*.py"))
    try:
        driver = Path("/proc/driver/nvidia/version").read_text()  # PyTorch does not ask for its version
    except OSError:
        driver = None
    content = json.dumps({
        "engine": engine.name, "device": _name(device), "driver": driver,
        "capability": torch.cuda.get_device_capability(device) if device.type == "cuda" else None,
        "torch": torch.__version__, "triton": triton.__version__, "cuda": torch.version.cuda,
        "sources": hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()}, indent=1)
    name = hashlib.sha256(content.encode()).hexdigest()[:32]
    return Path(triton.knobs.cache.dir) / "spide_fsnn_trial" / f"{name}.json", content


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"'{device.type}'"


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
    passed, total = 0, 0.0
    for case, seconds, error in run(engine, device):
        print(f"  {case.name:64} {'FAILED' if error else 'passed'} {seconds:7.2f} s", flush=True)
        passed, total = passed + (error is None), total + seconds
        if error is not None:
            lines = [str(error)] if isinstance(error, Differs) else traceback.format_exception(error)
            print(textwrap.indent("".join(lines).strip(), "    "), flush=True)
    print(f"{passed} of {len(CASES)} cases passed in {total:.1f} s")
    sys.exit(passed < len(CASES))


if __name__ == "__main__":
    main()
