"""What a report measures of a FeedbackSNN: rates, spikes, distance from the equilibrium, gradient."""
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from modules import FeedbackSNN, SpikeStatistics
from modules.circuit import Circuit
from modules.engines import Engine, ForwardResult
from modules.ide import IDE
from modules.neurons import LIBRARY, leak_sum, leak_weights
from modules.operations import Counts, Recorder
from modules.spide import SPIDE

SHOWN = 12  # units of a layer in a raster
BINS = 31  # of a histogram of rates, at most
TOLERANCE = 1e-4  # of the gradient that counts as exact, at most, whatever a run trains with
STEPS_BACK = (50, 100, 250, 1000)
TIMES = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4)  # of T, at which the distance from the equilibrium is measured


@dataclass(frozen=True)
class Call:
    """One call of a network on a batch."""

    circuit: Circuit  # what is simulated, on which input, by what, and the result
    x: Tensor
    engine: Engine
    forward: ForwardResult
    gradient: Tensor  # of the loss for the rates of the last layer
    readout: int  # multiply-accumulates of a sample in Linear layers outside the network

    @property
    def masks(self) -> list[Tensor]:
        """Which units pass gradient."""
        return self.circuit.masks(self.forward.counts)

    def first(self, samples: int) -> tuple[Circuit, Tensor]:
        """Circuit and input of the first samples."""
        cut = [replace(c, dropout=None if c.dropout is None else c.dropout[:samples]) for c in self.circuit.connections]
        x = self.x[:, :samples] if self.circuit.event_input else self.x[:samples]
        return replace(self.circuit, connections=tuple(cut)).detached(), x


def call(model: nn.Module, network: FeedbackSNN, inputs: Tensor, targets: Tensor, drive: float,
         loss: Callable[[Tensor, Tensor], Tensor], engine: Engine) -> Call:
    """Pass a batch through the model in the mode that it is in, and ``drive`` times the loss back to the network; a
    ValueError, if the model does not call the network just once, with as many samples, or its loss ignores it."""
    keys, given, seen, readout = torch.arange(len(inputs), device=inputs.device), [], [], []

    def keyed(module: nn.Module, args: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        given.append((args[0] if args else named["x"]).detach())
        if len(given[-1]) != len(inputs):
            raise ValueError(f"a report is of a FeedbackSNN that gets the samples of a batch, and this model makes "
                             f"{len(given[-1])} of {len(inputs)}")
        return args, {**named, "keys": keys}

    def cut(module: nn.Module, args: tuple, rates: Tensor) -> Tensor:
        seen.append(rates.detach().requires_grad_())
        return seen[-1]

    def count(module: nn.Linear, args: tuple, output: Tensor) -> None:
        readout.append(output.numel() // len(inputs) * module.in_features)

    hooks = [network.register_forward_pre_hook(keyed, with_kwargs=True),
             network.register_forward_hook(cut),
             *(m.register_forward_hook(count) for m in {*model.modules()} - {*network.modules()}
               if isinstance(m, nn.Linear))]
    try:
        value = drive * loss(model(inputs), targets)
    finally:
        for hook in hooks:
            hook.remove()
    if len(seen) != 1:
        raise ValueError(f"a report is of a FeedbackSNN that is called once, and this model calls it {len(seen)} times")
    rates, = seen
    gradient, = torch.autograd.grad(value, rates, allow_unused=True) if value.requires_grad else (None,)
    if gradient is None:
        raise ValueError("a report is of a FeedbackSNN that is trained, and the loss of this model does not depend on "
                         "its rates")
    circuit, x = network.bind(given[0].to(rates.dtype), keys)  # which autocast may have had in another format
    return Call(circuit, x, engine, engine.simulate_forward(circuit.detached(), x), gradient, sum(readout))


class Recording(NamedTuple):
    """Every step of a few samples in training, by the dense engine."""

    forward: Counts
    backward: Counts
    # By phase and per layer, of some units of the sample with the largest gradient, (steps, units).
    trains: dict[str, list[Tensor]]
    potentials: dict[str, list[Tensor]]  # before the reset; after the step for neurons of a user's own


def record(own: Call, samples: int) -> Recording:
    """Simulate some samples of a call step by step; shown are units that pass gradient and got some, if there are."""
    shown = own.gradient[:samples].flatten(1).norm(dim=1).argmax()
    betas = own.engine.simulate_backward(own.circuit.detached(), own.gradient, own.masks).betas
    units = [_choose((count[shown] != 0).int() + mask[shown] + (mask[shown] & (beta[shown] != 0)))
             for mask, beta, count in zip(own.masks, betas, own.forward.counts)]
    seen = {phase: [[] for _ in units] for phase in ("forward", "backward")}

    def watch(phase: str, layer: int, potential: Tensor, spikes: Tensor) -> None:
        seen[phase][layer].append(torch.stack([t[shown].flatten()[units[layer]] for t in (potential, spikes)]))

    recorder, (circuit, x) = Recorder(watch), own.first(samples)
    found = replace(own, forward=recorder.simulate_forward(circuit, x))
    recorder.simulate_backward(circuit, own.gradient[:samples], found.masks)
    trains, potentials = {}, {}
    for phase, neuron in (("forward", circuit.neuron), ("backward", circuit.couple)):
        steps = [torch.stack(layer).cpu().float().unbind(1) for layer in seen[phase]]
        trains[phase] = [spikes for _, spikes in steps]
        potentials[phase] = [potential / neuron.leak + neuron.quantum * spikes if type(neuron) in LIBRARY else
                             potential for potential, spikes in steps]
    return Recording(recorder.forward, recorder.backward, trains, potentials)


def _choose(merit: Tensor) -> Tensor:
    """Numbers of the ``SHOWN`` units of a layer with the highest merit, a whole number; of equals, some far apart."""
    golden = (5**0.5 - 1) / 2  # the fractions of its multiples are spread evenly
    order = merit.flatten() + torch.arange(merit.numel(), dtype=torch.float64, device=merit.device) * golden % 1
    return order.topk(min(SHOWN, merit.numel())).indices.sort().values


def rates(inference: Call, training: Call, backward: Counts) -> list[dict[str, Any]]:
    """Of each layer ``forward``, over all samples in evaluation, and ``backward``, over those recorded: the mean
    ``rate``, and the shares of units that are ``silent`` and ``saturated``, which fire at every step; of the forward
    one also the share that ``passes`` gradient in training."""
    def ends(counts: Tensor, steps: int) -> dict[str, float]:
        return {"rate": counts.double().mean().item() / steps, "silent": (counts == 0).double().mean().item(),
                "saturated": (counts == steps).double().mean().item()}

    return [{"layer": layer, "shape": list(count.shape[1:]), "units": count[0].numel(),
             "forward": {**ends(count, inference.circuit.time_step), "passes": mask.double().mean().item()},
             "backward": ends(fired, backward.steps)}
            for layer, (count, mask, fired) in enumerate(zip(inference.forward.counts, training.masks,
                                                             backward.spikes))]


def histogram(counts: list[Tensor], steps: int) -> dict[str, Any]:
    """How many units and samples have which rate, from numbers of spikes: ``rates``, middles of bins as wide as some
    whole numbers of spikes, and the ``shares`` of each layer."""
    most = int(max(count.max() for count in counts))
    width = -(-(most + 1) // BINS)
    bins = most // width + 1
    shares = [torch.bincount(count.flatten().long() // width, minlength=bins) / count.numel() for count in counts]
    return {"rates": [(number * width + (width - 1) / 2) / steps for number in range(bins)],
            "shares": [share.tolist() for share in shares]}


def equilibrium(own: Call) -> dict[str, Any]:
    """How far rates are from ``clip(I(a) / kappa, 0, 1)`` as steps go on, and whether that falls.

    Returns:
        ``steps``; ``distances``: per layer, means over units and samples at each of them; ``unsettled``: layers whose
        last distance is more than half of that at a quarter of its steps, and more than a threshold's worth of
        potential makes, which leaky neurons keep.
    """
    circuit, neuron = own.circuit.detached(), own.circuit.neuron
    steps = sorted({max(1, round(t * circuit.time_step)) for t in TIMES if t <= 1 or not circuit.event_input})
    distances = []
    for time in steps:
        now, x = replace(circuit, time_step=time), own.x[:time] if circuit.event_input else own.x
        mean = torch.tensordot(leak_weights(time, neuron.leak, like=x), x, dims=1) if circuit.event_input else x
        found = own.engine.simulate_forward(now, x).rates
        currents = [c.current(source) for c, source in zip(now.connections, now.sources(mean, found))]
        if now.has_feedback:
            currents[0] = currents[0] + currents.pop()
        distances.append([(rate - (current / neuron.quantum).clamp(0, 1)).abs().mean().item()
                          for rate, current in zip(found, currents)])
    earlier = next(found for time, found in zip(steps[::-1], distances[::-1]) if 4 * time <= steps[-1] or time == 1)
    floor = neuron.v_threshold / neuron.quantum / leak_sum(steps[-1], neuron.leak)
    return {"steps": steps, "distances": [list(layer) for layer in zip(*distances)],
            "unsettled": [layer for layer, (before, now) in enumerate(zip(earlier, distances[-1]))
                          if now > max(floor, before / 2)]}


def gradient(own: Call, network: FeedbackSNN) -> dict[str, Any]:
    """The gradient by spikes against IDE's, for every trained parameter of the network, over T_B.

    Returns:
        ``steps``; ``parameters``: by name, ``cosine`` and relative ``error`` at each of them, None where a gradient
        that they divide by is zero; ``sweeps``, ``tolerance`` and ``residual`` of IDE; whether it ``converged``.
    """
    named = {name.replace("parametrizations.", "").replace(".original", ""): parameter
             for name, parameter in network.named_parameters() if parameter.requires_grad}
    x = own.x.detach().requires_grad_(not named)  # so that a frozen network has sweeps too
    wanted = list(named.values()) or [x]
    steps_back, tolerance = STEPS_BACK if named else (), min(own.circuit.tolerance, TOLERANCE)
    statistics, parameters = SpikeStatistics(), {name: {"cosine": [], "error": []} for name in named}

    def solve(method: type, **changes: Any) -> list[Tensor]:
        circuit = replace(own.circuit, **changes)
        found = method.apply(circuit, own.engine, statistics, x, *circuit.tensors)
        return [g.double().flatten() for g in torch.autograd.grad(
            found, wanted, own.gradient, retain_graph=True, allow_unused=True, materialize_grads=True)]

    exact = solve(IDE, tolerance=tolerance)
    for steps in steps_back:
        for values, spiking, target in zip(parameters.values(), solve(SPIDE, time_step_back=steps), exact):
            size, sizes = target.norm().item(), (spiking.norm() * target.norm()).item()
            values["error"].append((spiking - target).norm().item() / size if size else None)
            values["cosine"].append((spiking @ target).item() / sizes if sizes else None)
    residual = statistics.residual.item()
    return {"steps": list(steps_back), "parameters": parameters, "sweeps": int(statistics.sweeps.item()),
            "tolerance": tolerance, "residual": residual, "converged": residual <= tolerance}
