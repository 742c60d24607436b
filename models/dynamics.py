"""The flags of a spiking network: how they are spelt, which values make sense, and what they mean."""
import argparse
import inspect
import math
from typing import Any

from modules import IF, LIF, FeedbackSNN, TernaryCouple, engines
from modules.feedback_snn import METHODS

_DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(FeedbackSNN).parameters.items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags and their checks to ``parser``, a :class:`utils.cli.Parser`."""
    add = parser.add_argument_group("spiking network").add_argument
    add("-t", "--time_step", type=int, default=_DEFAULTS["time_step"], experiment=True,
        help="steps of the forward simulation")
    add("-tb", "--time_step_back", type=int, default=_DEFAULTS["time_step_back"], experiment=True,
        help="steps of the backward simulation")
    add("--vth", type=float, default=LIF.v_threshold, experiment=True, help="threshold of forward neurons")
    add("--vth_back", type=float, default=TernaryCouple.v_threshold, experiment=True,
        help="threshold of backward neurons; 0 means as --vth")
    add("--u_rest", type=float, experiment=True, help="reset potential of forward neurons; -vth unless given")
    add("--u_rest_back", type=float, experiment=True,
        help="reset potential of backward neurons; -vth_back unless given")
    add("--leaky", type=float, default=IF().leak, experiment=True,
        help="1 for IF neurons, a leak in (0, 1) for LIF")
    add("--drop", "--dropout", type=float, default=0.0, experiment=True, help="dropout probability")
    add("--method", choices=tuple(METHODS), default=_DEFAULTS["method"], experiment=True,
        help="the backward pass: by spikes, or in floats")
    add("--ide-tolerance", type=float, default=_DEFAULTS["tolerance"],
        help="relative change of a sweep at which IDE stops")
    add("--ide-max-sweeps", type=int, default=_DEFAULTS["max_sweeps"], help="sweeps after which IDE stops in any case")
    add("--engine", default=_DEFAULTS["engine"],
        help=f"what simulates: {', '.join(engines.NAMES)}; auto picks by device")
    add("--precision", choices=engines.PRECISIONS, default="tf32", help="of products in the engine for GPUs")
    parser.checks.append(check)


def check(args: argparse.Namespace) -> None:
    """Refuse values out of range, in words that name the flag.

    Raises:
        ValueError: as said.
    """
    def require(condition: bool, sentence: str) -> None:
        if not condition:
            raise ValueError(sentence)

    for name in ("time_step", "time_step_back", "ide-max-sweeps"):
        steps = getattr(args, name.replace("-", "_"))
        require(steps >= 1, f"--{name} must be at least 1, not {steps}")
    require(0 < args.ide_tolerance < math.inf, f"--ide-tolerance must be a positive number, not {args.ide_tolerance}")
    require(0 < args.vth < math.inf, f"--vth must be a positive number, not {args.vth}")
    require(0 <= args.vth_back < math.inf,
            f"--vth_back must be positive, or 0 for the value of --vth, not {args.vth_back}")
    for name, threshold in (("u_rest", args.vth), ("u_rest_back", args.vth_back or args.vth)):
        reset = getattr(args, name)
        require(reset is None or -math.inf < reset < threshold,
                f"--{name} ({reset}) must be below the threshold ({threshold}): a spike lowers the potential")
    require(0 < args.leaky <= 1, f"--leaky must be 1 (IF) or lie in (0, 1) (LIF), not {args.leaky}")
    require(0 <= args.drop < 1, f"--drop must lie in [0, 1), not {args.drop}")
    require(":" not in args.engine, f"--engine takes a name alone, not '{args.engine}': see --precision")
    engines.require(args.engine)


def of(args: argparse.Namespace) -> dict[str, Any]:
    """Neurons, steps, method and engine of :class:`modules.FeedbackSNN` that the flags ask for.

    Args:
        args: what :func:`add_arguments` adds. A reset of None is minus the threshold, ``vth_back`` 0 is ``vth``,
            ``leaky`` 1 means IF neurons.
    """
    forward = {"v_threshold": args.vth, "u_rest": args.u_rest}
    return {
        "neuron": IF(**forward) if args.leaky == 1 else LIF(**forward, leak=args.leaky),
        "couple": TernaryCouple(v_threshold=args.vth_back or args.vth, u_rest=args.u_rest_back),
        "time_step": args.time_step, "time_step_back": args.time_step_back,
        "engine": f"{args.engine}:{args.precision}" if args.engine in ("auto", "cuda") else args.engine,
        "method": args.method, "tolerance": args.ide_tolerance, "max_sweeps": args.ide_max_sweeps,
    }
