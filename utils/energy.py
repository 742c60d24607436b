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
MODELS = ("arithmetic only", "with memory")
OPTIMIZER = 3  # multiply-accumulates of SGD with momentum and weight decay, per parameter

Work = Mapping[str, float]  # what a machine does for one sample: kind of operation, as in ``prices``, to how many
Counted = Mapping[str, Any]  # one phase, as modules.operations.Counts.per_sample gives it


@dataclass(frozen=True)
class Machine:
    """What holds a network: numbers of weights, and of units with a potential each, of 32 bits; ``time_step`` is T."""

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
    def prices(self) -> dict[str, dict[str, float]]:
        """pJ of one operation of each kind, by each of ``MODELS``."""
        add, multiply = CONSTANTS["32-bit addition"], CONSTANTS["32-bit multiplication"]
        weight, potential, history = (CONSTANTS[f"64 bits from {kind}"] / 2 for kind in self.memories.values())
        kinds = {  # arithmetic, and accesses to memory
            "spikes": (add, weight + 2 * potential),
            "products": (add + multiply, weight + 2 * potential),
            # Multipliers grow with both widths: in the same source, 0.2 pJ for 8 x 8 bits and 3.1 pJ for 32 x 32.
            "narrow products": (add + multiply * self.bits / 32, weight + 2 * potential),
            "gradient products": (add + multiply, potential + 2 * weight),
            "gradient spikes": (add, potential + 2 * weight),
            "optimizer products": (add + multiply, 3 * weight),
            "updates": (0.0, add + 2 * potential),
            "stored": (0.0, 2 * history)}
        return {kind: dict(zip(MODELS, (arithmetic, arithmetic + more))) for kind, (arithmetic, more) in kinds.items()}

    def energy(self, work: Work) -> dict[str, float]:
        """pJ of some work, by each of ``MODELS``."""
        prices = self.prices
        return {model: sum(prices[kind][model] * number for kind, number in work.items()) for model in MODELS}

    def compare(self, works: Mapping[str, Work], counts: Counted) -> dict[str, Any]:
        """The energy of some networks, and the density of spikes at which the first one would take that of another.

        Args:
            works: by name; counts: of the phase of the first one whose spikes between layers would vary.

        Returns:
            ``work``; ``energy`` by name and model; ``density``, spikes per coupling and step as counted; ``break_even``
            likewise, above 1 where even the most spikes that there can be cost less, None where even none cost more.
        """
        spikes, most = _inner(counts["operations"]), _inner(counts["couplings"]) * counts["steps"]
        first, *others = works
        energy = {name: self.energy(work) for name, work in works.items()}
        without = self.energy({**works[first], "spikes": works[first]["spikes"] - spikes})

        def break_even(other: str, model: str) -> float | None:
            left = (energy[other][model] - without[model]) / self.prices["spikes"][model]
            return left / most if most and left > 0 else None

        return {"work": dict(works), "energy": energy, "density": spikes / most if most else 0.0,
                "break_even": {other: {model: break_even(other, model) for model in MODELS} for other in others}}


def inference(forward: Counted, readout: float) -> dict[str, Work]:
    """What a sample takes in evaluation, which ``forward`` counted, by spikes, and in a pass of a quantised network of
    the same synapses; ``readout`` is the multiply-accumulates of everything behind the spiking network."""
    updates, pairs = sum(forward["updates"]), forward["couplings"]
    spikes, products = (sum(forward[kind].values()) for kind in ("operations", "products"))
    return {"spikes": {"spikes": spikes, "products": products + readout, "updates": updates},
            "quantised": {"products": pairs["input"] + readout, "narrow products": _inner(pairs),
                          "updates": updates / forward["steps"]}}


def training(forward: Counted, backward: Counted, *, sweeps: float, readout: float, parameters: float
             ) -> dict[str, Work]:
    """What a sample takes in training by SPIDE, by IDE, and by backpropagation through time.

    Args:
        forward, backward: counted in training; sweeps: of IDE on the same samples; readout: as for :func:`inference`.
        parameters: trained, divided by the batch that shares a step of the optimizer.
    """
    steps, operations, updates = forward["steps"], forward["operations"], sum(forward["updates"])
    spikes, products = (sum(forward[kind].values()) for kind in ("operations", "products"))
    gradients = sum(backward["products"].values()) + readout
    shared = {"spikes": spikes, "products": products + 2 * readout, "optimizer products": OPTIMIZER * parameters}

    def sweep(pairs: Mapping[str, float], times: float) -> float:
        """Products of values in place of spikes; those through the feedback are one time fewer."""
        return times * _inner(pairs) - pairs.get("feedback", 0)

    return {
        "SPIDE": {**shared, "spikes": spikes + sum(backward["operations"].values()),
                  "gradient products": gradients, "updates": updates + sum(backward["updates"])},
        "IDE": {**shared, "products": shared["products"] + sweep(backward["couplings"], sweeps),
                "gradient products": gradients, "updates": updates + sweeps * updates / steps},
        "backpropagation through time": {
            **shared, "products": shared["products"] + sweep(forward["couplings"], steps),
            "gradient products": products + readout,
            "gradient spikes": sum(operations.get(name, 0) for name in backward["products"]),
            "updates": 2 * updates, "stored": updates}}


def _inner(numbers: Mapping[str, float]) -> float:
    """Those of connections between layers."""
    return sum((number for name, number in numbers.items() if name != "input"), 0.0)
