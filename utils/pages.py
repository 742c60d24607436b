"""The page of a report, ``report.md`` here with its fields filled in, and the tables in it."""
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.energy import MODELS, OPTIMIZER

UNSETTLED = """
**Warning: layer {} does not settle**: the distance does not fall as steps go on. That happens where the feedback is no
contraction: restrict its norm (`max_norm`). Without an equilibrium the gradients mean little.
"""
OWN = """
**Note: {} is no neuron of the library**: where its rate is another one, the distance does not fall, and the gradients
below, spiking or exact, are those of an IF or LIF neuron.
"""
UNCONVERGED = """
**Warning: the exact gradient did not converge**: the last sweep still changed it by {} of its size. That happens where
the feedback is no contraction.
"""


def page(results: Mapping[str, Any]) -> str:
    """The whole page, from the contents of ``report.json``, see :func:`utils.report.write`."""
    network, layers, phases, energy = (results[name] for name in ("network", "rates", "operations", "energy"))
    equilibrium, gradient = results["equilibrium"], results["gradient"]
    unsettled = ", ".join(map(str, equilibrium["unsettled"]))
    fields = {
        "layers": len(layers), "shapes": ", ".join("x".join(map(str, layer["shape"])) for layer in layers),
        "units": sum(layer["units"] for layer in layers), "feedback": "with" if network["feedback"] else "without",
        "input": "event frames" if network["event_input"] else "constant input",
        "dropout": "with it" if network["dropout"] else "the same, as there is none",
        "others": "".join(f", {name} layers" for name in network["others"]), "optimizer": OPTIMIZER,
        "own": OWN.format(" and ".join(network["own"])) if network["own"] else "",
        "unsettled": UNSETTLED.format(unsettled) if unsettled else "",
        "unconverged": "" if gradient["converged"] else UNCONVERGED.format(number(gradient["residual"])),
        "rates": table(["layer", "units", "forward rate", "silent", "saturated", "passes gradient", "backward rate",
                        "silent", "saturated"],
                       ([layer["layer"], layer["units"],
                         *(share if kind == "rate" else _percent(share)
                           for way in ("forward", "backward") for kind, share in layer[way].items())]
                        for layer in layers)),
        "distances": table(["steps", *(f"layer {layer['layer']}" for layer in layers)],
                           zip(equilibrium["steps"], *equilibrium["distances"])),
        "gradients": table(["parameter", *(f"cosine, T_B = {steps}" for steps in gradient["steps"]),
                            *(f"error, {steps}" for steps in gradient["steps"])],
                           ([f"`{name}`", *own["cosine"], *own["error"]]
                            for name, own in gradient["parameters"].items())),
        "synapses": table(["phase", "synapse", "synaptic operations", "density", "multiply-accumulates"],
                          (row for phase, own in phases.items() for row in _synapses(phase, own))),
        "updates": table(["phase", "layer", "spikes", "neuron updates", "of which received something"],
                         ([phase, *row] for phase, own in phases.items()
                          for row in zip(range(len(layers)), own["spikes"], own["updates"], own["received"]))),
        "constants": table([f"constant ({energy['source']})", "pJ"], energy["constants"].items())}
    for kind, phase in (("inference", "forward"), ("training", "backward")):
        fields |= {
            f"{phase}_density": _percent(energy[kind]["density"]),
            kind: table(["network", "additions", "multiply-accumulates", "neuron updates",
                         *(f"µJ, {model}" for model in MODELS)], _works(energy[kind])),
            f"{kind}_verdict": table(["against", "model", "", "times its energy", f"break-even {phase} density"],
                                     _verdicts(energy[kind]))}
    text = Path(__file__).with_name("report.md").read_text(encoding="utf-8")
    return text.format_map({**results, **fields})


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; None as a dash."""
    cells = (["–" if value is None else value if isinstance(value, str) else number(value) for value in row]
             for row in rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *cells))


def number(value: float) -> str:
    """Three digits, and all of those before the point, as a person writes them."""
    if value and abs(value) < 1e-4:
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def _percent(share: float) -> str:
    return f"{number(100 * share)}%"


def _synapses(phase: str, own: Mapping[str, Any]) -> Iterable[list[Any]]:
    for name in own["couplings"] | own["products"]:
        spikes, pairs = (own[kind].get(name) for kind in ("operations", "couplings"))
        density = _percent(spikes / pairs / own["steps"]) if spikes else None
        yield [phase, f"`{name}`", spikes, density, own["products"].get(name, 0)]


def _works(own: Mapping[str, Any]) -> Iterable[list[Any]]:
    """What each network takes; additions and products are of several kinds."""
    for name, work in own["work"].items():
        sums = [sum(n for kind, n in work.items() if kind.endswith(last)) for last in ("spikes", "products", "updates")]
        yield [name, *sums, *(own["energy"][name][model] / 1e6 for model in MODELS)]


def _verdicts(own: Mapping[str, Any]) -> Iterable[list[Any]]:
    """Who wins, and at which density of spikes that would turn."""
    first, *others = own["energy"].values()
    for other, (name, evens) in zip(others, own["break_even"].items()):
        for model, even in evens.items():
            ratio = first[model] / other[model]
            density = "none: the rest costs more" if even is None else "any" if even >= 1 else _percent(even)
            yield [name, model, "spikes win" if ratio < 1 else "**spikes lose**", ratio, density]
