"""The interface of an engine: two functions, simulate forward and simulate backward, and their results."""
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from modules.circuit import Circuit


@dataclass(frozen=True)
class ForwardResult:
    """Outcome of the forward simulation; lists hold one tensor ``(batch, *layer_shape)`` per layer.

    Attributes:
        rates: firing rates, the leak-weighted mean of the spikes, in [0, 1].
        counts: numbers of spikes, whole numbers in [0, T] (held as floats, exact up to 2^24).
    """

    rates: list[Tensor]
    counts: list[Tensor]


@dataclass(frozen=True)
class BackwardResult:
    """Outcome of the backward simulation.

    Attributes:
        betas: per layer, leak-weighted mean of the signals ``r``, in [-kappa_b, kappa_b], ``(batch, *layer_shape)``.
        fired: numbers of spikes of either sign in each layer, over batch and steps, shape ``(layers,)``.
    """

    betas: list[Tensor]
    fired: Tensor


class EngineError(RuntimeError):
    """An engine that was asked for by name cannot be trusted here; the sentence says why and how to see more."""


class Engine(Protocol):
    """The interface of an engine. Both functions run without autograd and leave their arguments unchanged.

    Any object with a name and these two functions is an engine: give it to a FeedbackSNN, or register it.

    Attributes:
        name: how summaries and warnings call it.
    """

    name: str

    def simulate_forward(self, circuit: Circuit, x: Tensor) -> ForwardResult:
        """Run the spiking network for T steps on ``x``, ``(batch, ...)`` or, for events, ``(T, batch, ...)``."""

    def simulate_backward(self, circuit: Circuit, gradient: Tensor, masks: list[Tensor]) -> BackwardResult:
        """Run the ternary network for T_B steps.

        Args:
            circuit: the circuit of the forward simulation.
            gradient: ``g = dL/da`` of the last layer, ``(batch, *layer_shape)``.
            masks: per layer, 1 where a unit passes gradient and 0 elsewhere.
        """
