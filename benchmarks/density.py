"""How the time of a simulation grows with the density of spikes: event-driven against dense.

    python -m benchmarks.density [--output docs/density]

Writes OUTPUT.md and OUTPUT.png. *One layer*: the 3x3 convolution 96 -> 256 of AlexNet-F, forward, driven by spikes that
are drawn at random. *Whole network*: a forward and a backward simulation of AlexNet-F at its 30 and 250 steps, its
weights multiplied by a gain and driven by a gradient of a size such that more and more units spike.
"""
import argparse
from pathlib import Path

import torch

from benchmarks.speed import describe, timed
from models import AlexNetF
from modules import FeedbackSNN, synapses
from modules.engines import select
from utils.figures import explain, new_figure, save
from utils.pages import table

ENGINES = {name: select(name, torch.device("cpu")) for name in ("dense", "event")}
DENSITIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5)
GAINS = ((1, 0.01), (1, 0.1), (1.5, 0.5), (2.4, 1.4), (6, 5))  # of the weights; size of the gradient
BATCH = 16

Row = tuple[float, float, float]  # spikes per unit and step, and seconds of both engines


def fastest(repeats: int, *call: object) -> float:
    """Least seconds of some calls of a function with its arguments."""
    return min(timed(*call) for _ in range(repeats))


def one_layer(density: float) -> Row:
    """A layer that spikes at random, whatever came before, into a convolution; the cost of that layer is taken off."""
    seconds = []
    frames = (torch.rand(30, BATCH, 96, 16, 16) < density) * 2.0  # a spike takes just what made it fire
    for layers in ([synapses.Conv2d(96, 256, 3)], []):
        network = FeedbackSNN(input=synapses.AvgPool2d(1), layers=layers, time_step=30, event_input=True)
        call = network.bind(frames.transpose(0, 1))
        seconds.append([fastest(3, engine.simulate_forward, *call) for engine in ENGINES.values()])
    return density, *(both - less for both, less in zip(*seconds))


def whole_network(gain: float, gradient_size: float) -> tuple[Row, Row]:
    """The forward and the backward simulation."""
    torch.manual_seed(0)
    network = AlexNetF(time_step_back=250).eval().network
    with torch.no_grad():
        for synapse in (network.input, *network.layers):
            synapse.stored_weight.mul_(gain)
    circuit, x = network.bind(torch.randn(BATCH, 3, 32, 32))
    circuit = circuit.detached()
    event = ENGINES["event"]
    forward = event.simulate_forward(circuit, x)
    masks = [torch.ones_like(count, dtype=torch.bool) for count in forward.counts]
    gradient = (gradient_size * torch.randn_like(forward.rates[-1])).contiguous(memory_format=torch.channels_last)
    fired = event.simulate_backward(circuit, gradient, masks).fired
    units = sum(count.numel() for count in forward.counts)
    sent = sum(count.sum().item() for count in forward.counts)
    return ((sent / units / circuit.time_step,
             *(fastest(2, engine.simulate_forward, circuit, x) for engine in ENGINES.values())),
            (fired.sum().item() / units / circuit.time_step_back,
             *(timed(engine.simulate_backward, circuit, gradient, masks) for engine in ENGINES.values())))


def plot(tables: dict[str, list[Row]], path: Path) -> None:
    """Seconds over density, both engines, all panels to one scale."""
    figure, panels = new_figure(1, len(tables), width=13, height=4, sharex=True, sharey=True)
    for axes, (title, rows) in zip(panels[0], tables.items()):
        densities, *seconds = zip(*sorted(rows))
        for name, line, own in zip(ENGINES, ("s--", "o-"), seconds):
            axes.loglog([100 * density for density in densities], own, line, label=name)
        axes.set(title=title, xlabel="spikes per unit and step (%)", ylabel="seconds")
        for axis in (axes.xaxis, axes.yaxis):  # decades alone are named: what is between them would touch
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("")
        axes.tick_params(labelleft=True)
    explain(panels[0, -1])
    save(figure, path)


if __name__ == "__main__":
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--output", type=Path, default=Path("docs/density"))
    options = flags.parse_args()
    pairs = [whole_network(*setting) for setting in GAINS]
    tables = {"One layer, 30 steps": [one_layer(density) for density in DENSITIES],
              "Whole network, forward, 30 steps": [pair[0] for pair in pairs],
              "Whole network, backward, 250 steps": [pair[1] for pair in pairs]}
    text = f"Batch {BATCH}; {describe(torch.device('cpu'))}; `python -m benchmarks.density`.\n"
    for title, rows in tables.items():
        cells = [[f"{100 * density:.2f}%", f"{dense:.3f}", f"{event:.3f}", f"{dense / event:.2f}"]
                 for density, dense, event in rows]
        text += f"\n**{title}**\n\n{table(['spikes per unit and step', 'dense, s', 'event, s', 'ratio'], cells)}\n"
    print(text)
    options.output.with_suffix(".md").write_text(text)
    plot(tables, options.output.with_suffix(".png"))
