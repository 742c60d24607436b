"""The learning rate as a pure function of the iteration."""
from collections.abc import Sequence


def learning_rate(iteration: int, epoch: int, *, base: float, warmup: int, milestones: Sequence[int],
                  gamma: float) -> float:
    """Learning rate of one training iteration: a linear warm-up, then a step down at each milestone.

    Args:
        iteration: number of iterations done before this one, since the start of the run; epoch: likewise, from 0.
        base: learning rate after the warm-up; warmup: its length in iterations, 0 for none.
        milestones: epochs from which on the rate is smaller by another factor ``gamma``.
    """
    ramp = min(1.0, (iteration + 1) / warmup) if warmup else 1.0
    return base * ramp * gamma ** sum(epoch >= milestone for milestone in milestones)
