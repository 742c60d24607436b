"""What an engine simulates: synapses bound to the tensors, shapes and dropout masks of one call."""
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from modules.neurons import LIF, TernaryCouple
from modules.synapses import Shape, Synapse, layout

T = TypeVar("T")

# Few products of many frames are faster than many of one, yet memory must not grow with the number of steps.
FRAMES_PER_PRODUCT = 8


@dataclass(frozen=True, kw_only=True)
class Connection:
    """One synapse in one call: the linear map, and the tensors and shapes that it is used with."""

    name: str  # in its network, such as "layers.1"
    synapse: Synapse
    weight: Tensor | None
    bias: Tensor | None
    further: tuple[Tensor, ...] = ()  # other parameters
    dropout: Tensor | None = None  # mask of 0 and 1/(1-p) on the current, (batch, *output_shape)
    dropout_scale: float = 1.0  # what it holds where it is not 0; 1 without a mask
    input_shape: Shape  # of spikes, without the batch dimension
    output_shape: Shape  # of the current

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """Weight, bias and further parameters."""
        return self.weight, self.bias, *self.further

    @property
    def fixed(self) -> tuple[list[Any], list[bool]]:
        """What both passes of a call find in the synapse besides ``tensors``: its buffers, each as it is now, and the
        mode of its modules; parametrizations left out, which have done their part."""
        def own(found: Iterable[tuple[str, T]]) -> list[T]:
            return [value for name, value in found if name and not name.startswith("parametrizations.")]
        return ([(id(buffer), buffer._version) for buffer in own(self.synapse.named_buffers())],
                [module.training for module in own(self.synapse.named_modules())])

    def current(self, spikes: Tensor, samples: slice = slice(None)) -> Tensor:
        """``dropout * (W s + b)``, the bias included as it is part of the current; for all samples, or some."""
        current = self.synapse.current(spikes, self.weight, self.bias, self.output_shape)
        return current if self.dropout is None else current * self.dropout[samples]

    def transpose(self, spikes: Tensor) -> Tensor:
        """``W^T s``, the dropout mask left out, which is part of what scales ``s``, see :meth:`Circuit.gates`."""
        return self.method("transpose")(spikes, self.weight, self.input_shape)

    def method(self, name: str) -> Callable[..., Any]:
        """A method of the synapse that follows from its current; from another current that was put on this synapse
        alone, as autograd knows it, and not from the one that its class has it for."""
        own = vars(self.synapse)
        if "current" in own and name not in own:
            return partial(getattr(Synapse, name), self.synapse)
        return getattr(self.synapse, name)


@dataclass(frozen=True, kw_only=True)
class Circuit:
    """A feedback spiking network with everything that one forward and backward pass hold fixed."""

    connections: tuple[Connection, ...]  # the input synapse, that into each further layer, and the feedback if any
    has_feedback: bool  # whether the last connection leads from the last layer back to layer 0
    neuron: LIF  # of the forward network
    couple: TernaryCouple  # of the backward network
    time_step: int  # T
    time_step_back: int  # T_B
    tolerance: float = 1e-4  # of IDE, see modules.ide
    max_sweeps: int = 100
    event_input: bool  # the input is one frame per step, (T, batch, ...), instead of a constant (batch, ...)

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
        """The same circuit with other weights and biases, laid out for simulation; synapses use their own further
        parameters."""
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

    def masks(self, counts: list[Tensor]) -> list[Tensor]:
        """``m_l``: units that pass gradient, as they fired but not at every step. From whole numbers of spikes: the
        rounded rate of a neuron that fired at every step need not equal 1."""
        return [(count > 0) & (count < self.time_step) for count in counts]

    def gates(self, factors: list[Tensor]) -> list[Tensor]:
        """What signals of the post-synaptic layer of every connection are multiplied with on their way back: a factor
        of each layer, and the dropout mask, as it scales the current."""
        return [factor if c.dropout is None else factor * c.dropout
                for c, factor in zip(self.connections, self.targets(factors))]

    def input_currents(self, x: Tensor) -> Iterator[Tensor]:
        """``W_0 x(t) + b_0``, some steps at a time, ``(steps, batch, *shape)``; a constant one only once."""
        if not self.event_input:
            yield self.input.current(x)[None]
            return
        own = self.input
        for frames in x.split(FRAMES_PER_PRODUCT):
            flat = frames.flatten(0, 1).contiguous(memory_format=layout(frames[0]))
            currents = own.synapse.current(flat, own.weight, own.bias, own.output_shape).unflatten(0, frames.shape[:2])
            yield currents if own.dropout is None else currents * own.dropout
