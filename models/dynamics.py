"""The published hyperparameters as arguments of a network."""
from typing import Any

from modules import IF, LIF, TernaryCouple


def dynamics(args: Any) -> dict[str, Any]:
    """Neurons, steps and engine of :class:`modules.FeedbackSNN` from a script's arguments.

    Args:
        args: has ``vth, u_rest, vth_back, u_rest_back, leaky, time_step, time_step_back, engine, precision``. A reset
            of None is minus the threshold, ``vth_back`` 0 is ``vth``, ``leaky`` 1 means IF neurons.

    Raises:
        ValueError: a value is out of its range.
    """
    forward = {"v_threshold": args.vth, "u_rest": args.u_rest}
    return {
        "neuron": IF(**forward) if args.leaky == 1 else LIF(**forward, leak=args.leaky),
        "couple": TernaryCouple(v_threshold=args.vth_back or args.vth, u_rest=args.u_rest_back),
        "time_step": args.time_step, "time_step_back": args.time_step_back,
        "engine": f"{args.engine}:{args.precision}" if args.engine in ("auto", "cuda") else args.engine,
    }
