"""Spiking neurons of the two passes: IF and LIF forward, ternary couples backward (SPIDE, sections 3.1 and 4.2).

A neuron here is a set of numbers and one step of dynamics. It holds no tensors: the simulation owns the membrane
potentials, so one neuron serves every layer, batch and device.
"""
import copy
import math
from dataclasses import dataclass, field
from numbers import Real

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class _Neuron:
    """The numbers of a neuron; one out of its range is a ValueError."""

    v_threshold: float
    u_rest: float | None = None
    leak: float

    def __post_init__(self) -> None:
        for name, value in (("v_threshold", self.v_threshold), ("u_rest", self.u_rest or 0.0), ("leak", self.leak)):
            if not isinstance(value, Real):
                raise ValueError(f"{name} must be a plain number, not a {type(value).__name__}: "
                                 "neurons are not trained")
            if getattr(self, name) is not None:
                object.__setattr__(self, name, float(value))
        if not 0 < self.v_threshold < math.inf:
            raise ValueError(f"a firing threshold must be positive, not {self.v_threshold}")
        if self.u_rest is None:
            object.__setattr__(self, "u_rest", -self.v_threshold)
        if not -math.inf < self.u_rest < self.v_threshold:
            raise ValueError(f"u_rest ({self.u_rest}) must be below the threshold ({self.v_threshold})")

    @property
    def quantum(self) -> float:
        """What one spike takes from the potential: kappa = v_threshold - u_rest."""
        return self.v_threshold - self.u_rest


@dataclass(frozen=True, kw_only=True)
class LIF(_Neuron):
    """Leaky integrate-and-fire neuron with reset by subtraction.

    One step: ``u += I``; ``s = [u >= v_threshold]``; ``u = leak * (u - quantum * s)``.

    Args:
        v_threshold: firing threshold, > 0.
        u_rest: potential that a spike resets towards, below the threshold; ``-v_threshold`` by default.
        leak: factor that remains of the potential after a step, in (0, 1).
    """

    v_threshold: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.leak < 1:
            raise ValueError(f"the leak of a LIF neuron must lie in (0, 1), not {self.leak}: use IF for no leak")

    def step_(self, potential: Tensor, current: Tensor, spikes: Tensor) -> None:
        """Advance by one step, in place: update ``potential``, overwrite ``spikes`` with 0 or 1 (all of one shape)."""
        potential += current
        torch.ge(potential, self.v_threshold, out=spikes)
        potential.sub_(spikes, alpha=self.quantum)
        if self.leak != 1:
            potential *= self.leak


@dataclass(frozen=True, kw_only=True)
class IF(LIF):
    """Integrate-and-fire neuron: a LIF that does not leak (``leak = 1``). Arguments as for :class:`LIF`."""

    leak: float = field(default=1.0, init=False)

    def __post_init__(self) -> None:
        _Neuron.__post_init__(self)


@dataclass(frozen=True, kw_only=True)
class TernaryCouple(_Neuron):
    """Two coupled neurons that fire spikes of value -1, 0 or 1: the unit of the backward network (SPIDE, section 4.2).

    One step: ``v += J``; ``s = [v >= v_threshold] - [v <= -v_threshold]``; ``v = leak * (v - quantum * s)``. The
    signal that a spike carries is ``r = quantum * s``, with the quantum kappa_b of the couple.

    Args:
        v_threshold, u_rest: of both neurons, as in :class:`LIF`.
        leak: in (0, 1], 1 for none. A FeedbackSNN gives its couples the leak of its forward neurons.
    """

    v_threshold: float = 0.5
    leak: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.leak <= 1:
            raise ValueError(f"the leak of a ternary couple must lie in (0, 1], not {self.leak}")

    def with_leak(self, leak: float) -> "TernaryCouple":
        """This couple if it has that leak, or else a copy with it, of whatever a user's own type holds."""
        if leak == self.leak:
            return self
        other = copy.copy(self)
        object.__setattr__(other, "leak", leak)
        other.__post_init__()
        return other

    def step_(self, potential: Tensor, current: Tensor, spikes: Tensor, negative: Tensor) -> Tensor:
        """Advance by one step, in place, and return how many units fired (a 0-dim tensor on the device).

        ``potential`` is updated and ``spikes`` overwritten with -1, 0 or 1; ``negative`` is scratch of the same shape.
        """
        potential += current
        torch.ge(potential, self.v_threshold, out=spikes)
        torch.le(potential, -self.v_threshold, out=negative)
        wide = torch.promote_types(spikes.dtype, torch.float32)  # half formats do not count far
        fired = spikes.sum(dtype=wide) + negative.sum(dtype=wide)
        spikes -= negative
        potential.sub_(spikes, alpha=self.quantum)
        if self.leak != 1:
            potential *= self.leak
        return fired


LIBRARY = (IF, LIF, TernaryCouple)  # the types whose step is that of their numbers; others are a user's own


def leak_in(leak: float, dtype: torch.dtype) -> float:
    """The leak as numbers of ``dtype`` hold it: 1 - 1e-8 is 1 in float32, and such a neuron does not leak."""
    return torch.tensor(leak, dtype=dtype).item()


def leak_weights(steps: int, leak: float, *, like: Tensor) -> Tensor:
    """Weights ``leak^(T-t) / sum`` of the steps ``t = 1..T`` in a firing rate, shape ``(steps,)``, summing to 1."""
    ages = torch.arange(steps - 1, -1, -1, device=like.device, dtype=torch.float64)
    weights = leak_in(leak, like.dtype) ** ages
    return (weights / weights.sum()).to(like.dtype)


def leak_sum(steps: int, leak: float) -> float:
    """Sum of ``leak^(T-t)`` over ``t = 1..T``: what a leaky spike count is divided by to become a rate."""
    # Added up one by one: the closed form, a quotient of two small differences, is far off for a leak close to 1.
    return float(steps) if leak == 1 else math.fsum(leak**age for age in range(steps))
