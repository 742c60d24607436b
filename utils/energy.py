"""Energy of a network on hardware that does not exist yet: operations times what each would cost.

*Arithmetic only* is the convention of the literature: an addition for a synaptic operation, a multiply-accumulate
elsewhere, nothing for the rest. *With memory* is explained in ``report.md``, which says what is counted and what not.
"""
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SOURCE = "M. Horowitz, Computing's energy problem, ISSCC 2014, 45 nm"
CONSTANTS = {"32-bit addition": 0.9, "32-bit multiplication": 3.7, "64 bits from 8 KB": 10.0,
             "64 bits from 32 KB": 20.0, "64 bits from 1 MB": 100.0, "64 bits from DRAM": 1300.0}  # pJ
MEMORIES = {"8 KB": 2**13, "32 KB": 2**15, "1 MB": 2**20, "DRAM": math.inf}  # bytes
MODELS = ("arithmetic only", "with memory, clock-driven", "with memory, event-driven")
OPTIMIZER = 3  # multiply-accumulates of SGD with momentum and weight decay, per parameter

# What a machine does for one sample: kind of operation to how many; ``received`` are the updates if events drive it.
Work = Mapping[str, float]
Counted = Mapping[str, Any]  # one phase, as modules.operations.Counts.per_sample gives it


@dataclass(frozen=True)
class Machine:
    """What holds a network.

    Args:
        weights, units: numbers of them, a potential of each unit, 32 bits each; time_step: T.
    """

    weights: int
    units: int
    time_step: int

    @property
    def bits(self) -> int:
        """Of an activation in a quantised network, whose values are the rates 0, 1/T, .. 1."""
        return math.ceil(math.log2(self.time_step + 1))

    @property
    def memories(self) -> dict[str, str]:
        """For all weights, all potentials, and the potentials of all steps, the smallest memory that holds them."""
        held = {"weights": self.weights, "potentials": self.units, "history": self.units * self.time_step}
        return {name: next(kind for kind, size in MEMORIES.items() if 4 * number <= size)
                for name, number in held.items()}

    @property
    def prices(self) -> dict[str, tuple[float, float]]:
        """pJ of one operation of each kind: of its arithmetic, and with its accesses to memory."""
        add, multiply = CONSTANTS["32-bit addition"], CONSTANTS["32-bit multiplication"]
        weight, potential, history = (CONSTANTS[f"64 bits from {kind}"] / 2 for kind in self.memories.values())
        kinds = {
            "spikes": (add, weight + 2 * potential),
            "products": (add + multiply, weight + 2 * potential),
            # Multipliers grow with both widths: in the same source, 0.2 pJ for 8 x 8 bits and 3.1 pJ for 32 x 32.
            "narrow products": (add + multiply * self.bits / 32, weight + 2 * potential),
            "gradient products": (add + multiply, potential + 2 * weight),
            "gradient spikes": (add, potential + 2 * weight),
            "optimizer products": (add + multiply, 3 * weight),
            "updates": (0.0, add + 2 * potential),
            "stored": (0.0, 2 * history)}
        return {kind: (arithmetic, arithmetic + more) for kind, (arithmetic, more) in kinds.items()}

    def energy(self, work: Work) -> dict[str, float]:
        """pJ of some work by each of ``MODELS``."""
        arithmetic, memory = (sum(price[model] * work.get(kind, 0) for kind, price in self.prices.items())
                              for model in (0, 1))
        idle = (work["updates"] - work["received"]) * self.prices["updates"][1]
        return dict(zip(MODELS, (arithmetic, memory, memory - idle)))

    def compare(self, works: Mapping[str, Work], counts: Counted) -> dict[str, Any]:
        """The energy of some networks, and the density of spikes at which the first one would take that of another.

        Args:
            works: by name; counts: of the phase of the first one whose spikes between layers would vary.

        Returns:
            ``work``, ``energy`` by name and model; ``density``, spikes per coupling and step as counted; ``break_even``
            by name and model, above 1 where even the most spikes that there can be cost less, and None where even none
            cost more.
        """
        spikes = _total(_inner(counts["operations"]))
        most = _total(_inner(counts["couplings"])) * counts["steps"]
        first, *others = works
        energy = {name: self.energy(work) for name, work in works.items()}
        without = self.energy({**works[first], "spikes": works[first]["spikes"] - spikes})

        def break_even(other: str, model: str) -> float | None:
            price = self.prices["spikes"][model != MODELS[0]]
            density = (energy[other][model] - without[model]) / price / most if most else 0.0
            return density if density > 0 else None

        return {"work": dict(works), "energy": energy, "density": spikes / most if most else 0.0,
                "break_even": {other: {model: break_even(other, model) for model in MODELS} for other in others}}


def inference(forward: Counted, readout: float) -> dict[str, Work]:
    """What a sample takes in evaluation by spikes, and in one pass of a quantised network of the same synapses.

    Args:
        forward: counted in evaluation; readout: multiply-accumulates of everything behind the spiking network.
    """
    units = _total(forward["updates"]) / forward["steps"]
    works = {"spikes": {"spikes": _total(forward["operations"]), "products": _total(forward["products"]) + readout,
                        **_updates(forward)}}
    for name, pairs in (("quantised", forward["couplings"]), ("quantised, zeros skipped", forward["active"])):
        works[name] = {"spikes": 0.0, "products": pairs["input"] + readout, "updates": units, "received": units,
                       "narrow products": _total(_inner(pairs))}
    return works


def training(forward: Counted, backward: Counted, *, sweeps: float, readout: float, parameters: float
             ) -> dict[str, Work]:
    """What a sample takes in training by SPIDE, by IDE, and by backpropagation through time.

    Args:
        forward, backward: counted in training; sweeps: of IDE on the same samples; readout: as for :func:`inference`.
        parameters: trained, divided by the batch that shares a step of the optimizer.
    """
    steps, operations = forward["steps"], forward["operations"]
    units, gradients = _total(forward["updates"]) / steps, _total(backward["products"])

    def sweep(pairs: Mapping[str, float], times: float) -> float:
        """Products of values in place of spikes; those through the feedback are one time fewer."""
        return times * _total(_inner(pairs)) - pairs.get("feedback", 0)

    shared = {"spikes": _total(operations), "products": _total(forward["products"]) + 2 * readout,
              **_updates(forward), "gradient products": readout, "optimizer products": OPTIMIZER * parameters}
    works = {
        "SPIDE": {"spikes": _total(backward["operations"]), "gradient products": gradients, **_updates(backward)},
        "IDE": {"products": sweep(backward["couplings"], sweeps), "gradient products": gradients,
                "updates": sweeps * units, "received": sweeps * units},
        "backpropagation through time": {
            "products": sweep(forward["couplings"], steps), "gradient products": _total(forward["products"]),
            "gradient spikes": sum(operations[name] for name in backward["products"]),
            "updates": steps * units, "received": steps * units, "stored": steps * units}}
    return {name: {kind: shared.get(kind, 0) + own.get(kind, 0) for kind in shared | own}
            for name, own in works.items()}


def compared(tested: Counted, forward: Counted, backward: Counted, *, machine: Machine, sweeps: float, readout: float,
             trained: float) -> dict[str, Any]:
    """The energy of inference and training beside that of other networks, and what it is made from.

    Args:
        tested: counted in evaluation; others: see :func:`training`, ``trained`` for its ``parameters``.
    """
    learning = training(forward, backward, sweeps=sweeps, readout=readout, parameters=trained)
    return {"inference": machine.compare(inference(tested, readout), tested),
            "training": machine.compare(learning, backward),
            "memories": machine.memories, "bits": machine.bits, "constants": CONSTANTS, "source": SOURCE}


def _inner(numbers: Mapping[str, float]) -> dict[str, float]:
    """Those of connections between layers."""
    return {name: number for name, number in numbers.items() if name != "input"}


def _updates(counts: Counted) -> Work:
    return {kind: _total(counts[kind]) for kind in ("updates", "received")}


def _total(numbers: Any) -> float:
    return float(sum(numbers.values() if isinstance(numbers, Mapping) else numbers))
