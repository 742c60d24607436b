"""FeedbackSNN: a feedback spiking network as an ordinary module, built from synapses and neuron parameters."""
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from modules import engines
from modules.circuit import Circuit, Connection
from modules.dropout import draw_keys, dropout_mask
from modules.neurons import IF, LIF, TernaryCouple
from modules.spide import SPIDE, SpikeStatistics
from modules.synapses import Shape, Synapse, layout


class FeedbackSNN(nn.Module):
    """Feedback spiking neural network trained by SPIDE (Xiao et al., Neural Networks 161, 2023).

    Args:
        input: synapse from the input to layer 0.
        layers: synapse into each further layer; may be empty.
        feedback: synapse from the last layer back to layer 0, or None.
        neuron: parameters of every forward neuron, IF by default.
        couple: parameters of every backward couple; its leak is that of ``neuron``.
        time_step, time_step_back: simulated steps of the forward and the backward network, >= 1.
        event_input: inputs are recordings, one frame per step, ``(batch, frames, ...)`` with ``frames >= time_step``,
            of which the first ``time_step`` are used.
        engine: 'auto', the name of an engine, or an object with the interface of :class:`modules.engines.Engine`.
        precision: 'fp32', 'tf32', 'bf16x2' or 'bf16', of the products of the engine 'cuda'.

    Raises:
        ValueError: a number of steps is not positive, or there is no such engine.

    Example:
        >>> net = FeedbackSNN(input=Conv2d(3, 8, 3, stride=2), layers=[Conv2d(8, 8, 3)],
        ...                   feedback=Conv2d(8, 8, 3, bias=False, max_norm=2.0), time_step=30, time_step_back=100)
        >>> net(torch.rand(4, 3, 32, 32)).shape
        torch.Size([4, 8, 16, 16])
    """

    def __init__(self, *, input: Synapse, layers: Sequence[Synapse] = (), feedback: Synapse | None = None,
                 neuron: LIF = IF(), couple: TernaryCouple = TernaryCouple(), time_step: int = 30,
                 time_step_back: int = 100, event_input: bool = False, engine: str | engines.Engine = "auto",
                 precision: str = "tf32") -> None:
        super().__init__()
        for name, steps in (("time_step", time_step), ("time_step_back", time_step_back)):
            if steps < 1:
                raise ValueError(f"{name} must be at least 1, not {steps}")
        if isinstance(engine, str):
            # A wrong name is better refused here than at the first call.
            engines.select(engine, torch.device("cpu"), precision)
        self.input, self.layers, self.feedback = input, nn.ModuleList(layers), feedback
        self.neuron, self.couple = neuron, replace(couple, leak=neuron.leak)
        self.time_step, self.time_step_back = time_step, time_step_back
        self.event_input, self.engine, self.precision = event_input, engine, precision

    def forward(self, x: Tensor, statistics: SpikeStatistics | None = None, *, keys: Tensor | None = None) -> Tensor:
        """Firing rates of the last layer at the equilibrium.

        Args:
            x: constant input ``(batch, ...)``, or ``(batch, frames, ...)`` with ``event_input``.
            statistics: receives the firing rates of this call and of its backward pass.
            keys: int64 ``(batch,)``, from which the dropout masks of each sample follow; drawn unless given.

        Returns:
            Rates ``(batch, *shape of the last layer)`` in [0, 1], differentiable for ``x`` and all parameters.

        Raises:
            ValueError: the input, or the sizes of the layers, do not fit together, or there are too few frames.
        """
        if self.event_input:
            if x.ndim < 2 or x.shape[1] < self.time_step:
                raise ValueError(f"event input must hold at least time_step = {self.time_step} frames in dimension 1, "
                                 f"got a tensor of shape {tuple(x.shape)}")
            x = x[:, :self.time_step].transpose(0, 1)
        else:
            x = x.contiguous(memory_format=layout(x))
        sample = x[0] if self.event_input else x
        circuit = self._circuit(sample, keys)
        engine = self.engine
        if isinstance(engine, str):
            engine = engines.select(engine, x.device, self.precision)
        return SPIDE.apply(circuit, engine, statistics, x, *circuit.tensors)

    def layer_shapes(self, input_shape: Shape) -> list[Shape]:
        """Shape of every layer, without the batch dimension, for one input image or frame of ``input_shape``."""
        shapes = []
        for synapse in (self.input, *self.layers):
            shapes.append(synapse.output_shape(shapes[-1] if shapes else tuple(input_shape)))
        return shapes

    def _circuit(self, x: Tensor, keys: Tensor | None = None) -> Circuit:
        """Everything that a call on an input like ``x``, ``(batch, ...)``, holds fixed, the dropout masks included."""
        shapes = [tuple(x.shape[1:]), *self.layer_shapes(tuple(x.shape[1:]))]
        routes = list(zip((self.input, *self.layers), shapes[:-1], shapes[1:]))
        if self.feedback is not None:
            if not self.feedback.reaches(shapes[-1], shapes[1]):
                raise ValueError(f"the feedback synapse {self.feedback} does not lead from the last layer, of shape "
                                 f"{shapes[-1]}, to layer 0, of shape {shapes[1]}")
            routes.append((self.feedback, shapes[-1], shapes[1]))
        drops = [synapse.dropout if synapse.training else 0.0 for synapse, _, _ in routes]
        if keys is None and any(drops):
            keys = draw_keys(len(x), x.device)
        masks = [dropout_mask(keys, target, p=p, stream=stream, dtype=x.dtype) if p else None
                 for stream, (p, (_, _, target)) in enumerate(zip(drops, routes))]
        connections = tuple(
            Connection(synapse=synapse, weight=synapse.weight, bias=synapse.bias, input_shape=source,
                       output_shape=target, dropout=mask)
            for (synapse, source, target), mask in zip(routes, masks))
        return Circuit(connections=connections, has_feedback=self.feedback is not None, neuron=self.neuron,
                       couple=self.couple, time_step=self.time_step, time_step_back=self.time_step_back,
                       event_input=self.event_input)

    def extra_repr(self) -> str:
        return f"{self.neuron}, {self.couple}, time_step={self.time_step}, time_step_back={self.time_step_back}"
