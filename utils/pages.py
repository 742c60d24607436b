"""The page of a report: the text as it reads, and the tables in it."""
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from utils.energy import MODELS, OPTIMIZER

PAGE = """\
# What this network does

{layers} layers of {shapes} units, {units:,} in all, {feedback} feedback; {neuron}, {couple}; T = {time_step} forward
and T_B = {time_step_back} backward steps; {input}.

Measured on {samples} samples with the {engine} engine on {device}; every step of {recorded} of them was recorded with
the dense engine. *Evaluation* is without dropout; *training* is {dropout}. What drives the backward network is the
gradient of a sample's loss times `scale_factor / batch` = {scale_factor:g} / {batch}.

## Rates and spikes

Rates are spikes per unit and step, forward in evaluation. A unit is *silent* if it never fires for a sample,
*saturated* if it fires at every step; in training it *passes gradient* if it is neither. Backward spikes are those of
either sign and of all units; where a unit passes no gradient, they go nowhere.

{rates}

![Histograms of rates](rates.png)

Some units of every layer in training, for the recorded sample with the largest gradient, and the potential of the one
among them that sent most backward spikes:

![Spikes](raster.png)

![Membrane potentials](potentials.png)

## Equilibrium

Implicit differentiation takes firing rates `a` to stand at the equilibrium `a = clip(I(a) / kappa, 0, 1)`. The mean
distance from it, in evaluation, falls as one over the steps where IF neurons settle; LIF neurons keep a part of it.
{unsettled}
{distances}

![Distance from the equilibrium](equilibrium.png)

## Gradient

Gradients by spikes (SPIDE) against the solution of the same equation in floats (IDE), with the same samples, rates and
dropout masks. Sweeps that IDE took: {sweeps}. A cosine of 1 is the exact direction, an error of 0 the exact gradient; a
dash stands where a gradient is zero.
{unconverged}
{gradients}

![Gradient over T_B](gradient.png)

## Operations

Per sample. A *synaptic operation* is a spike times a unit that it reaches: one signed addition. It reaches the units
that a coupling other than zero leads to, so borders count exactly; a unit that dropout cuts off, or that passes no
gradient in the backward network, neither sends nor receives. *Density* is operations per coupling and step.
*Multiply-accumulates* are, forward, the current of constant input, once for all steps, or entries of event frames other
than 0 and 1; backward, the gradients of weights, one outer product a batch.

{synapses}

A *neuron update* is a unit times a step. A unit *received* something in a step if a spike reached it, or the input or
the gradient of the loss did; biases do not count.

{updates}

## Energy

Operations times what each would cost; no chip was measured. *Arithmetic only*, the convention of the literature, takes
an addition for a synaptic operation, a multiply-accumulate elsewhere, and nothing for memory and neurons. *With
memory*, each operation also reads one number and reads and writes another (a weight and a potential; for gradients of
weights, a rate or an error and a gradient), 32 bits each, from the smallest memory that holds all of them. Each neuron
update is an addition that reads and writes a potential: of every unit at every step if a *clock* drives the machine,
where something was received if *events* do. Nobody reuses what a register or a cache holds, which is where dense
products do best.

{constants}

A multiply-accumulate is an addition and a multiplication, and a multiplication by {bits} bits takes {bits}/32 of its
energy. Weights fit into {weights}, the potentials of a sample into {potentials}, those of all steps into {history};
DRAM takes 1,300 to 2,600 pJ, of which the lower end is used.

*Counted*: the above, the linear readout, and {optimizer} multiply-accumulates of the optimizer (SGD with momentum) for
each parameter, shared by a batch of {batch}. *Not counted*: biases and their gradients, the loss, transport of spikes,
control, leakage, reading of data{others}.

*Inference* is set beside one pass through the same synapses with activations of {bits} bits (T + 1 levels), all of
them, or without those that are zero. *Training* is set beside IDE, with its sweeps as measured, which skips units
without gradient as spikes do; and beside backpropagation through all T steps, which multiplies dense errors, adds up
gradients of weights where spikes were, and stores the potentials. Their forward pass is the same.

**Inference, per sample**

{inference}

**Training, per sample**

{training}

![Energy of a sample](energy.png)
"""
UNSETTLED = """
**Warning: layer {} does not settle**: the distance does not fall as steps go on. That happens where the feedback is no
contraction: restrict its norm (`max_norm`). Without an equilibrium the gradients mean little.
"""
UNCONVERGED = """
**Warning: the exact gradient did not converge**: the last sweep still changed it by {} of its size. That happens where
the feedback is no contraction.
"""
VERDICT = """\
{works}

The {phase} density of spikes is {density} of the couplings between layers in a step. At the *break-even* density, all
else being equal, spikes would take the same energy; below it they win.

{verdict}"""


def page(results: Mapping[str, Any]) -> str:
    """The whole page, from the contents of ``report.json``, see :func:`utils.report.write`."""
    network, layers, energy = results["network"], results["rates"], results["energy"]
    distances, gradient = results["equilibrium"], results["gradient"]
    return PAGE.format(
        **{**network, **results["how"], **energy["memories"]}
        | {"layers": len(layers), "shapes": ", ".join("x".join(map(str, layer["shape"])) for layer in layers),
           "units": sum(layer["units"] for layer in layers), "feedback": "with" if network["feedback"] else "without",
           "input": "event frames" if network["event_input"] else "constant input",
           "dropout": "with it" if network["dropout"] else "the same, as there is none",
           "rates": _rates(layers), "sweeps": gradient["sweeps"], "bits": energy["bits"], "optimizer": OPTIMIZER,
           "unsettled": UNSETTLED.format(", ".join(map(str, distances["unsettled"]))) if distances["unsettled"] else "",
           "distances": table(["steps", *(f"layer {number}" for number in range(len(layers)))],
                              zip(distances["steps"], *distances["distances"])),
           "unconverged": "" if gradient["converged"] else UNCONVERGED.format(number(gradient["residual"])),
           "gradients": table(["parameter", *(f"cosine, T_B = {steps}" for steps in gradient["steps"]),
                               *(f"error, {steps}" for steps in gradient["steps"])],
                              [[f"`{name}`", *own["cosine"], *own["error"]]
                               for name, own in gradient["parameters"].items()]),
           "synapses": _synapses(results["operations"]),
           "updates": table(["phase", "layer", "spikes", "neuron updates", "of which received something"],
                            [[phase, *row] for phase, own in results["operations"].items()
                             for row in zip(range(len(layers)), own["spikes"], own["updates"], own["received"])]),
           "constants": table([f"constant ({energy['source']})", "pJ"], energy["constants"].items()),
           "others": "".join(f", {name} layers" for name in network["others"]),
           "inference": _compared(energy["inference"], "forward"),
           "training": _compared(energy["training"], "backward")})


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; None as a dash."""
    cells = (["–" if value is None else value if isinstance(value, str) else number(value) for value in row]
             for row in rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *cells))


def number(value: float) -> str:
    """Three digits, and all of those before the point, as a person writes them."""
    if value and (abs(value) >= 1e8 or abs(value) < 1e-4):
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _percent(share: float) -> str:
    return f"{number(100 * share)}%"


def _rates(layers: Sequence[Mapping[str, Any]]) -> str:
    ends = ("silent", "saturated")
    return table(["layer", "units", "forward rate", *ends, "passes gradient", "backward rate", *ends],
                 [[layer["layer"], layer["units"],
                   layer["forward"]["rate"], *(_percent(layer["forward"][kind]) for kind in (*ends, "passes")),
                   layer["backward"]["rate"], *(_percent(layer["backward"][kind]) for kind in ends)]
                  for layer in layers])


def _synapses(phases: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for phase, own in phases.items():
        for name in dict.fromkeys([*own["operations"], *own["products"]]):
            spikes, pairs = (own[kind].get(name) for kind in ("operations", "couplings"))
            density = _percent(spikes / pairs / own["steps"]) if spikes and pairs else None
            rows.append([phase, f"`{name}`", spikes, density, own["products"].get(name, 0.0)])
    return table(["phase", "synapse", "synaptic operations", "density", "multiply-accumulates"], rows)


def _compared(own: Mapping[str, Any], phase: str) -> str:
    """What each network takes, who wins, and at which density of spikes that would turn."""
    first, *others = own["energy"]
    works = [[name, *(sum(n for kind, n in work.items() if kind.endswith(last)) for last in ("spikes", "products")),
              work["updates"], work["received"], *(own["energy"][name][model] / 1e6 for model in MODELS)]
             for name, work in own["work"].items()]
    verdict = []
    for other, model in ((other, model) for other in others for model in MODELS):
        ratio, even = own["energy"][first][model] / own["energy"][other][model], own["break_even"][other][model]
        verdict.append([other, model, "spikes win" if ratio < 1 else "**spikes lose**", ratio,
                        "none: the rest costs more" if even is None else "any" if even >= 1 else _percent(even)])
    return VERDICT.format(
        phase=phase, density=_percent(own["density"]),
        works=table(["network", "additions", "multiply-accumulates", "neuron updates", "received",
                     *(f"µJ, {model}" for model in MODELS)], works),
        verdict=table(["against", "model", "", "times its energy", f"break-even {phase} density"], verdict))
