"""The dynamics of neurons, a vector of them at a time: the one place where compiled loops compare, reset and leak."""
import numpy as np

from modules.engines.event.compiled import jit
from modules.engines.event.lanes import add_if, at_least, at_most


@jit(inline=True)
def beyond(plan, potential):
    """Which units are at a threshold or beyond, as bits."""
    return at_least(potential, plan.upper) | at_most(potential, plan.lower)


@jit(inline=True)
def fire(plan, potential):
    """Which units fire in a step, and what becomes of their membrane potentials.

    Args:
        potential: with all that arrived in this step.

    Returns:
        The potential after reset and leak; which units fire a spike, which a negative one, and which are beyond a
        threshold even after their reset, as bits.
    """
    # No branch on what fires: the processor would have to guess it, and wait for all rows to see that it was wrong.
    up, down = at_least(potential, plan.upper), at_most(potential, plan.lower)
    potential = add_if(potential, up, -plan.quantum)
    if plan.lower > -np.inf:  # else there are none, and the sums alone would cost a fifth of LeNet's forward pass
        potential = add_if(potential, down, plan.quantum)
    still = beyond(plan, potential)
    if plan.leak != 1:
        potential = potential * plan.leak
    return potential, up, down, still
