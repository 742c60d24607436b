"""The interface of an engine: two functions, simulate forward and simulate backward, and their results."""
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from modules.circuit import Circuit


@dataclass(frozen=True)
class ForwardResult:
    """Outcome of the forward simulation; lists hold one tensor ``(batch, *layer_shape)`` per layer."""

    rates: list[Tensor]  # firing rates, the leak-weighted mean of the spikes, in [0, 1]
    counts: list[Tensor]  # numbers of spikes, whole numbers in [0, T] (held as floats, exact up to 2^24)


@dataclass(frozen=True)
class BackwardResult:
    """Outcome of the backward simulation."""

    betas: list[Tensor]  # per layer, leak-weighted mean of r, in [-kappa_b, kappa_b], (batch, *layer_shape)
    fired: Tensor  # numbers of spikes of either sign in each layer, over batch and steps, (layers,)


class EngineError(RuntimeError):
    """An engine that was asked for by name cannot be trusted here; the sentence says why and how to see more."""


class Engine(Protocol):
    """Any object with a name and these two functions is an engine: give it to a FeedbackSNN, or register it.

    Both functions run without autograd and leave their arguments unchanged.
    """

    name: str  # how summaries and warnings call it

    def simulate_forward(self, circuit: Circuit, x: Tensor) -> ForwardResult:
        """Run the spiking network for T steps on ``x``, ``(batch, ...)`` or, for events, ``(T, batch, ...)``."""

    def simulate_backward(self, circuit: Circuit, gradient: Tensor, masks: list[Tensor]) -> BackwardResult:
        """Run the ternary network of the same circuit for T_B steps.

        Args:
            gradient: ``g = dL/da`` of the last layer, ``(batch, *layer_shape)``.
            masks: per layer, 1 where a unit passes gradient and 0 elsewhere.
        """
