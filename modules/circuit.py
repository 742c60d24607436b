"""What an engine simulates: synapses bound to the tensors, shapes and dropout masks of one call."""
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from modules.neurons import LIF, TernaryCouple
from modules.synapses import Shape, Synapse, layout

T = TypeVar("T")

# Few products of many frames are faster than many of one, yet memory must not grow with the number of steps.
FRAMES_PER_PRODUCT = 8


@dataclass(frozen=True, kw_only=True)
class Connection:
    """One synapse in one call.

    Attributes:
        name: of the synapse in its network, such as ``layers.1``.
        synapse: the linear map; weight, bias: the tensors it uses, or None; further: its other parameters.
        dropout: mask of 0 and ``dropout_scale`` on its output current, ``(batch, *output_shape)``, or None.
        dropout_scale: 1/(1-p); 1 without a mask.
        input_shape, output_shape: of spikes and current, without the batch dimension.
    """

    name: str
    synapse: Synapse
    weight: Tensor | None
    bias: Tensor | None
    further: tuple[Tensor, ...] = ()
    dropout: Tensor | None = None
    dropout_scale: float = 1.0
    input_shape: Shape
    output_shape: Shape

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The tensors that gradients are wanted for: weight, bias and further parameters."""
        return self.weight, self.bias, *self.further

    def current(self, spikes: Tensor) -> Tensor:
        """``dropout * (W s + b)``, the bias included as it is part of the current."""
        current = self.synapse.current(spikes, self.weight, self.bias, self.output_shape)
        return current if self.dropout is None else current * self.dropout

    def transpose(self, spikes: Tensor) -> Tensor:
        """``W^T s``. The dropout mask is part of the gate that scales ``s``, see :meth:`gate`."""
        return self.synapse.transpose(spikes, self.weight, self.input_shape)

    def gate(self, factor: Tensor) -> Tensor:
        """What a backward spike of the target layer is multiplied with on its way into :meth:`transpose`."""
        return factor if self.dropout is None else factor * self.dropout


@dataclass(frozen=True, kw_only=True)
class Circuit:
    """A feedback spiking network with everything that one forward and backward pass hold fixed.

    Attributes:
        connections: the input synapse, the synapse into each further layer, and last the feedback synapse if any.
        has_feedback: whether the last connection leads from the last layer back to layer 0.
        neuron, couple: of the forward and the backward network.
        time_step, time_step_back: numbers of simulated steps, T and T_B.
        tolerance, max_sweeps: of IDE, see :class:`modules.ide.IDE`.
        event_input: the input is one frame per step, ``(T, batch, ...)``, instead of a constant ``(batch, ...)``.
    """

    connections: tuple[Connection, ...]
    has_feedback: bool
    neuron: LIF
    couple: TernaryCouple
    time_step: int
    time_step_back: int
    tolerance: float = 1e-4
    max_sweeps: int = 100
    event_input: bool

    @property
    def input(self) -> Connection:
        """W_0, from the input to layer 0."""
        return self.connections[0]

    @property
    def feedback(self) -> Connection | None:
        """F, from the last layer to layer 0."""
        return self.connections[-1] if self.has_feedback else None

    @property
    def feedforward(self) -> tuple[Connection, ...]:
        """W_0 .. W_{N-1}: connection ``l`` ends in layer ``l``."""
        return self.connections[:-1] if self.has_feedback else self.connections

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The tensors of every connection, in order."""
        return tuple(tensor for connection in self.connections for tensor in connection.tensors)

    @property
    def named_tensors(self) -> dict[str, Tensor | None]:
        """The same by name, for messages."""
        return {f"{kind} of the synapse '{c.name}'": tensor for c in self.connections for kind, tensor in
                zip(("weight", "bias", *(f"parameter {i}" for i in range(len(c.further)))), c.tensors)}

    def split(self, values: Sequence[T]) -> list[tuple[T, ...]]:
        """Values in the order of ``tensors``, by connection."""
        rest = iter(values)
        return [tuple(itertools.islice(rest, len(c.tensors))) for c in self.connections]

    def with_tensors(self, tensors: Sequence[Tensor | None]) -> "Circuit":
        """The same circuit with other weights and biases, laid out for simulation; further parameters are those of the
        synapses, which use them."""
        laid_out = [t if t is None else t.contiguous(memory_format=layout(t)) for t in tensors]
        return replace(self, connections=tuple(
            replace(c, weight=weight, bias=bias)
            for c, (weight, bias, *_) in zip(self.connections, self.split(laid_out))))

    def detached(self) -> "Circuit":
        """The same circuit apart from autograd: threads of an engine do not inherit ``no_grad``."""
        return self.with_tensors([t if t is None else t.detach() for t in self.tensors])

    def sources(self, mean_input: Tensor, rates: list[Tensor]) -> list[Tensor]:
        """The pre-synaptic firing rates of every connection, in the order of ``connections``."""
        return [mean_input, *rates[:-1], *([rates[-1]] if self.has_feedback else [])]

    def targets(self, per_layer: list[Tensor]) -> list[Tensor]:
        """The post-synaptic layer's entry of every connection, in the order of ``connections``."""
        return [*per_layer, *([per_layer[0]] if self.has_feedback else [])]

    def input_currents(self, x: Tensor) -> Iterator[Tensor]:
        """``W_0 x(t) + b_0`` for ``t = 1..T``."""
        if self.event_input:
            return (current for frames in self.frames_of_currents(x) for current in frames)
        current = self.input.current(x)
        return (current for _ in range(self.time_step))

    def frames_of_currents(self, x: Tensor) -> Iterator[Tensor]:
        """The currents of event input, some steps at a time, ``(frames, batch, *shape)``."""
        for frames in x.split(FRAMES_PER_PRODUCT):
            flat = frames.flatten(0, 1).contiguous(memory_format=layout(frames[0]))
            raw = self.input.synapse.current(flat, self.input.weight, self.input.bias, self.input.output_shape)
            currents = raw.unflatten(0, frames.shape[:2])
            yield currents if self.input.dropout is None else currents * self.input.dropout


def zeros(connection: Connection, batch: int, *, like: Tensor) -> Tensor:
    """Zeros in the shape and memory layout of the layer that ``connection`` ends in."""
    state = torch.zeros((batch, *connection.output_shape), dtype=like.dtype, device=like.device)
    return state.contiguous(memory_format=layout(state))
