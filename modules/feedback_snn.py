"""FeedbackSNN: a feedback spiking network as an ordinary module, built from synapses and neuron parameters."""
from collections.abc import Iterable, Sequence
from itertools import pairwise
from numbers import Integral

import torch
from torch import Tensor, nn

from modules import engines, probe
from modules.circuit import Circuit, Connection
from modules.dropout import draw_keys, dropout_mask
from modules.ide import IDE
from modules.implicit import ImplicitGradient, SpikeStatistics
from modules.neurons import IF, LIF, TernaryCouple, leak_in
from modules.spide import SPIDE
from modules.synapses import Shape, Synapse, layout

METHODS: dict[str, type[ImplicitGradient]] = {"spide": SPIDE, "ide": IDE}


class FeedbackSNN(nn.Module):
    """Feedback spiking neural network trained by SPIDE (Xiao et al., Neural Networks 161, 2023) or IDE.

    Args:
        input: synapse from the input to layer 0.
        layers: synapse into each further layer; may be empty.
        feedback: synapse from the last layer back to layer 0, or None.
        neuron: parameters of every forward neuron, IF by default.
        couple: parameters of every backward couple; its leak is that of ``neuron``.
        time_step, time_step_back: simulated steps of the forward and the backward network, >= 1.
        event_input: inputs are recordings, one frame per step, ``(batch, frames, ...)`` with ``frames >= time_step``,
            of which the first ``time_step`` are used.
        engine: what simulates: a name that :func:`modules.engines.select` takes, such as 'dense' or 'cuda:bf16', or an
            object with the interface of :class:`modules.engines.Engine`.
        method: of the backward pass, 'spide', by spikes, or 'ide', in floats.
        tolerance, max_sweeps: of IDE: relative change of a sweep at which it stops, > 0, and most sweeps, >= 1.

    Raises:
        ValueError: a number is out of its range, or there is no such engine or method; TypeError: ``engine`` is an
            object and no engine.

    Example:
        >>> net = FeedbackSNN(input=Conv2d(3, 8, 3, stride=2), layers=[Conv2d(8, 8, 3)],
        ...                   feedback=Conv2d(8, 8, 3, bias=False, max_norm=2.0), time_step=30, time_step_back=100)
        >>> net(torch.rand(4, 3, 32, 32)).shape
        torch.Size([4, 8, 16, 16])
    """

    _tried: tuple[LIF | None, TernaryCouple | None] = None, None  # neurons that were found to be in order

    def __init__(self, *, input: Synapse, layers: Sequence[Synapse] = (), feedback: Synapse | None = None,
                 neuron: LIF = IF(), couple: TernaryCouple = TernaryCouple(), time_step: int = 30,
                 time_step_back: int = 100, event_input: bool = False, engine: str | engines.Engine = "auto",
                 method: str = "spide", tolerance: float = 1e-4, max_sweeps: int = 100) -> None:
        super().__init__()
        own = [*layers] if isinstance(layers, Iterable) else [layers]
        _check_parts([input, *own, feedback], neuron, couple)
        engines.require(engine)  # a wrong name is better refused here than at the first call
        self.input, self.layers, self.feedback = input, nn.ModuleList(own), feedback
        self.neuron, self.couple = neuron, couple.with_leak(neuron.leak)
        self.time_step, self.time_step_back = time_step, time_step_back
        self.event_input, self.engine = event_input, engine
        self.method, self.tolerance, self.max_sweeps = method, tolerance, max_sweeps
        self._check()

    def _check(self) -> None:
        """Refuse parts that are none, and numbers that are out of their range, whenever they were set."""
        _check_parts([self.input, *self.layers, self.feedback], self.neuron, self.couple)
        for name in ("time_step", "time_step_back", "max_sweeps"):
            number = getattr(self, name)
            if not isinstance(number, Integral) or number < 1:
                raise ValueError(f"{name} must be at least 1, and whole, not {number}")
        if not self.tolerance > 0:
            raise ValueError(f"tolerance must be positive, not {self.tolerance}")
        if self.method not in METHODS:
            raise ValueError(f"there is no method '{self.method}'; choose one of {', '.join(METHODS)}")

    def forward(self, x: Tensor, statistics: SpikeStatistics | None = None, *, keys: Tensor | None = None) -> Tensor:
        """Firing rates of the last layer at the equilibrium, in the number format of the weights, also under autocast.

        Args:
            x: constant input ``(batch, ...)``, or ``(batch, frames, ...)`` with ``event_input``.
            statistics: receives the firing rates of this call and of its backward pass.
            keys: int64 ``(batch,)``, from which the dropout masks of each sample follow; drawn unless given.

        Returns:
            Rates ``(batch, *shape of the last layer)`` in [0, 1], differentiable for ``x`` and all parameters.

        Raises:
            ValueError: the input, or the sizes of the layers, do not fit together, there are too few frames, or a
                number is not finite.
        """
        if not (statistics is None or isinstance(statistics, SpikeStatistics)):
            raise TypeError(f"statistics must be a SpikeStatistics, not a {type(statistics).__name__}; keys are given "
                            "by name, keys=...")
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(self._dtype(x))
        with torch.autocast(x.device.type, enabled=False):
            circuit, x = self.bind(x, keys)
            engine = engines.select(self.engine, x.device)
            return METHODS[self.method].apply(circuit, engine, statistics, x, *circuit.tensors)

    def bind(self, x: Tensor, keys: Tensor | None = None) -> tuple[Circuit, Tensor]:
        """What an engine simulates in a call; arguments and errors as of :meth:`forward`.

        Returns:
            The circuit, with weights and dropout masks; and the input as engines take it, ``(batch, ...)`` laid out,
            or for event input time first, ``(T, batch, ...)``.
        """
        self._check()
        if x.dtype != self._dtype(x):
            raise ValueError(f"the input is in {x.dtype} and the network's weights in {self._dtype(x)}: convert one")
        self._check_format(x.dtype)
        if not self.event_input:
            x = sample = x.contiguous(memory_format=layout(x))
        elif x.ndim < 3 or x.shape[1] < self.time_step:
            raise ValueError(f"event input must hold at least time_step = {self.time_step} frames in dimension 1, "
                             f"got a tensor of shape {tuple(x.shape)}")
        else:
            x = x[:, :self.time_step].transpose(0, 1)
            sample = x[0]
        shapes = [tuple(sample.shape[1:]), *self.layer_shapes(sample.shape[1:])]
        synapses = {"input": self.input, **{f"layers.{number}": synapse for number, synapse in enumerate(self.layers)}}
        ends = [*pairwise(shapes)]
        if self.feedback is not None:
            if not self.feedback.reaches(shapes[-1], shapes[1]):
                raise ValueError(f"the feedback synapse {self.feedback} does not lead from the last layer, of shape "
                                 f"{shapes[-1]}, to layer 0, of shape {shapes[1]}")
            synapses["feedback"] = self.feedback
            ends.append((shapes[-1], shapes[1]))
        drops = [synapse.dropout if synapse.training else 0.0 for synapse in synapses.values()]
        if keys is None and any(drops):
            keys = draw_keys(len(sample), x.device)
        if keys is not None and (keys.dtype != torch.int64 or keys.shape != (len(sample),)):
            raise ValueError(f"keys must be int64 of shape ({len(sample)},), one for each sample, not {keys.dtype} of "
                             f"shape {tuple(keys.shape)}")
        keys = None if keys is None else keys.to(x.device)  # a DataLoader's come on the CPU
        connections = []
        for stream, ((name, synapse), p, (source, target)) in enumerate(zip(synapses.items(), drops, ends)):
            weight, bias, *further = synapse.read()
            mask = dropout_mask(keys, target, p=p, stream=stream, dtype=x.dtype) if p else None
            connections.append(Connection(name=name, synapse=synapse, weight=weight, bias=bias, further=tuple(further),
                                          dropout=mask, dropout_scale=1 / (1 - p), input_shape=source,
                                          output_shape=target))
            for kind, tensor in (("weight", weight), ("bias", bias)):
                if tensor is not None and tensor.dtype != x.dtype:
                    raise ValueError(f"the {kind} of the synapse '{name}' is in {tensor.dtype} and the input in "
                                     f"{x.dtype}: convert one")
            probe.check(connections[-1], x)
        couple = self.couple.with_leak(self.neuron.leak)
        for neuron, before in zip((self.neuron, couple), self._tried):
            if neuron is not before:
                probe.check_neuron(neuron, shapes[1], x)
        self._tried = self.neuron, couple
        return Circuit(connections=tuple(connections), has_feedback=self.feedback is not None, neuron=self.neuron,
                       couple=couple, time_step=self.time_step,
                       time_step_back=self.time_step_back,
                       tolerance=self.tolerance, max_sweeps=self.max_sweeps, event_input=self.event_input), x

    def _check_format(self, dtype: torch.dtype) -> None:
        """Refuse a number format in which a simulation would be another one than that of its numbers."""
        if not dtype.is_floating_point:
            raise ValueError(f"the input must hold floating-point numbers, not {dtype}")
        most = 2 / torch.finfo(dtype).eps  # whole numbers up to it are exact
        back = torch.is_grad_enabled() and self.method == "spide"
        steps = max(self.time_step, self.time_step_back if back else 0)
        if steps > most:
            raise ValueError(f"{dtype} counts no more than {most:.0f} spikes, and there are {steps} steps: use float32")
        for neuron in (self.neuron, self.couple):
            for what, value in (("threshold", neuron.v_threshold), ("threshold less u_rest,", neuron.quantum)):
                if not 0 < leak_in(value, dtype) < torch.inf:
                    raise ValueError(f"the {what} {value} is 0 or infinite in {dtype}")

    def layer_shapes(self, input_shape: Shape) -> list[Shape]:
        """Shape of every layer, without the batch dimension, for one input image or frame of ``input_shape``."""
        shapes = [tuple(input_shape)]
        for synapse in (self.input, *self.layers):
            shapes.append(shape := synapse.output_shape(shapes[-1]))
            if not isinstance(shape, tuple):
                raise TypeError(f"the output_shape of the synapse {type(synapse).__name__} must be a tuple, as in "
                                f"(channels, height, width), not {shape!r}")
        return shapes[1:]

    def _dtype(self, x: Tensor) -> torch.dtype:
        """The number format of the weights; that of ``x`` for a network without any."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), x.dtype)

    def extra_repr(self) -> str:
        return f"{self.neuron}, {self.couple}, time_step={self.time_step}, time_step_back={self.time_step_back}"


def _check_parts(synapses: Sequence[Synapse | None], neuron: LIF, couple: TernaryCouple) -> None:
    """Refuse, by TypeError, what a network cannot be built from; the feedback, which is last, may be None."""
    for synapse in synapses[:-1] if synapses[-1] is None else synapses:
        if not isinstance(synapse, Synapse):
            raise TypeError(f"a network is built from synapses of modules.synapses, not from {synapse!r}")
    for name, value, kind in (("neuron", neuron, LIF), ("couple", couple, TernaryCouple)):
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be a {kind.__name__} with its numbers, as {kind.__name__}(...), "
                            f"not {value!r}")
