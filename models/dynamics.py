"""Flags of a spiking network: how they are spelt, which values make sense, and what they mean."""
import argparse
import inspect
from functools import partial
from typing import Any

import torch

from modules import IF, LIF, FeedbackSNN, TernaryCouple, engines
from modules.feedback_snn import METHODS

_DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(FeedbackSNN).parameters.items()}
_AT_LEAST_1 = "be at least 1 and below 2^31, not", lambda value: 1 <= value < 2**31
_POSITIVE = "be a positive number in float32, not", lambda value: 1e-38 < value < 3e38


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags and their checks to ``parser``, a :class:`utils.cli.Parser`."""
    add = parser.add_argument_group("spiking network").add_argument
    define = partial(add, experiment=True)
    of_spide = "with --method spide", lambda args: args.method == "spide"
    of_ide = "with --method ide", lambda args: args.method == "ide"
    define("-t", "--time_step", type=int, must=_AT_LEAST_1, default=_DEFAULTS["time_step"],
           help="steps of the forward simulation")
    define("-tb", "--time_step_back", type=int, must=_AT_LEAST_1, default=_DEFAULTS["time_step_back"],
           counts=of_spide, help="steps of the backward simulation")
    define("--vth", type=float, must=_POSITIVE, default=LIF.v_threshold, help="threshold of forward neurons")
    define("--vth_back", type=float, default=TernaryCouple.v_threshold,
           must=("be positive in float32, or 0 for the value of --vth, not",
                 lambda value: value == 0 or 1e-38 < value < 3e38), counts=of_spide,
           help="threshold of backward neurons; 0 means as --vth")
    define("--u_rest", type=float, help="reset potential of forward neurons; -vth unless given")
    define("--u_rest_back", type=float, counts=of_spide,
           help="reset potential of backward neurons; -vth_back unless given")
    define("--leaky", type=float, must=("be 1 (IF) or lie in (0, 1) (LIF), not", lambda value: 1e-38 < value <= 1),
           default=IF().leak, help="1 for IF neurons, a leak in (0, 1) for LIF")
    define("--drop", "--dropout", type=float, must=("lie in [0, 1), not", lambda value: 0 <= value < 1), default=0.0,
           help="dropout probability")
    define("--method", choices=tuple(METHODS), default=_DEFAULTS["method"],
           help="the backward pass: by spikes, or in floats")
    add("--ide-tolerance", type=float, must=_POSITIVE, default=_DEFAULTS["tolerance"],
        counts=of_ide, help="relative change of a sweep at which IDE stops")
    add("--ide-max-sweeps", type=int, must=_AT_LEAST_1, default=_DEFAULTS["max_sweeps"],
        counts=of_ide, help="sweeps after which IDE stops in any case")
    add("--engine", default=_DEFAULTS["engine"],
        help=f"what simulates: {', '.join(engines.NAMES)}; auto picks by device")
    add("--precision", choices=engines.PRECISIONS, default="tf32", help="of products in the engine for GPUs",
        counts=("with --engine cuda, or auto on a GPU", _on_gpu))
    parser.checks.append(check)


def check(args: argparse.Namespace) -> None:
    """Refuse, by ValueError, resets that raise the potential, and engines that there are not."""
    for name, threshold in (("u_rest", args.vth), ("u_rest_back", args.vth_back or args.vth)):
        reset = getattr(args, name)
        if not (reset is None or reset < threshold):
            raise ValueError(f"--{name} ({reset}) must be below the threshold ({threshold}): a spike lowers the "
                             "potential")
        if not threshold - (-threshold if reset is None else reset) < 3e38:
            raise ValueError(f"--{name} ({reset}) is so far below the threshold ({threshold}) that float32 does not "
                             "hold by how much a spike lowers the potential")
    if ":" in args.engine:
        raise ValueError(f"--engine takes a name alone, not '{args.engine}': see --precision")
    engines.require(args.engine)


def _on_gpu(args: argparse.Namespace) -> bool:
    """Whether the engine for GPUs may run."""
    return args.engine == "cuda" or args.engine == "auto" and torch.cuda.is_available() and args.gpu_id != "-1"


def of(args: argparse.Namespace) -> dict[str, Any]:
    """Neurons, steps, method and engine of :class:`modules.FeedbackSNN` that the flags ask for."""
    forward = {"v_threshold": args.vth, "u_rest": args.u_rest}
    return {
        "neuron": IF(**forward) if args.leaky == 1 else LIF(**forward, leak=args.leaky),
        "couple": TernaryCouple(v_threshold=args.vth_back or args.vth, u_rest=args.u_rest_back),
        "time_step": args.time_step, "time_step_back": args.time_step_back,
        "engine": f"{args.engine}:{args.precision}" if args.engine in ("auto", "cuda") else args.engine,
        "method": args.method, "tolerance": args.ide_tolerance, "max_sweeps": args.ide_max_sweeps,
    }
