"""Pictures of a report and of runs. Layers differ in lightness, line and marker, so that they do in grey print too."""
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from modules.neurons import LIBRARY
from utils.files import replacing
from utils.pages import number

LINES, MARKERS = ("-", "--", "-.", ":"), "osD^v<>P"
SIGNS = {1: {"color": "#08306b", "label": "spike of +1"},  # dark
         -1: {"color": "#f28e2b", "label": "spike of −1"}}  # light
DIRECTIONS = ("forward", "backward")


def new_figure(rows: int, columns: int, *, width: float, height: float, layout: str | None = "constrained",
               **settings: Any) -> tuple[Any, Any]:
    """A figure that no display is needed for, whatever backend is set, and its axes ``(rows, columns)``."""
    backend = os.environ.pop("MPLBACKEND", None)  # matplotlib cannot be imported where that names one which is absent
    try:
        from matplotlib.figure import Figure  # takes a second to import, which only who draws need wait for
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend

    figure = Figure(figsize=(width, height), layout=layout)
    axes = figure.subplots(rows, columns, squeeze=False, **settings)
    for own in axes.flat:
        own.grid(alpha=0.3)
        own.set_axisbelow(True)
    return figure, axes


def save(figure: Any, path: Path) -> None:
    """Write a figure as a PNG."""
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=110, pil_kwargs={"compress_level": 1})  # a tenth sooner


def style(place: int, count: int) -> dict[str, Any]:
    """How to draw a line, by its place among ``count``."""
    from matplotlib import colormaps

    return {"color": colormaps["viridis"](0.88 * place / max(1, count - 1)), "linestyle": LINES[place % len(LINES)],
            "marker": MARKERS[place % len(MARKERS)], "markersize": 4, "linewidth": 1.4}


def draw_lines(axes: Any, x: Sequence[float], lines: Mapping[str, Sequence[float | None]], **labels: Any) -> None:
    """Lines by name over ``x``, with gaps where there is no value or, on a logarithmic axis, where it is 0.

    Where no value could stand on a logarithmic axis, it is linear.
    """
    if not any(value and value > 0 for y in lines.values() for value in y):
        labels["yscale"] = "linear"
    for place, (name, y) in enumerate(lines.items()):
        drawn = [value or None for value in y] if labels.get("yscale") == "log" else y
        axes.plot(x, drawn, label=name, markevery=max(1, len(x) // 30), **style(place, len(lines)))
    axes.set(**labels)
    if labels.get("xscale") == "log":
        axes.set_xticks(x, map(str, x))
        axes.set_xticks([], minor=True)


def explain(axes: Any) -> None:
    """A legend beside the axes, where it covers nothing; it serves all panels that show the same kinds of things."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")


def by_layer(values: Sequence[Any]) -> dict[str, Any]:
    """An entry for each layer, with its name."""
    return {f"layer {layer}": value for layer, value in enumerate(values)}


def of_report(results: Mapping[str, Any], recording: Any, network: Any) -> dict[str, Any]:
    """The figures of a report by name, from what ``report.json`` holds and a :class:`utils.measures.Recording`."""
    found, gradient = results["equilibrium"], results["gradient"]
    weights = {name: own for name, own in gradient["parameters"].items() if "bias" not in name}
    equilibrium = lines({"x": found["steps"], "lines": by_layer(found["distances"]), "xscale": "log", "yscale": "log",
                         "xlabel": "steps of simulation", "ylabel": "mean of |a − clip(I(a)/κ, 0, 1)|",
                         "title": f"Distance from the equilibrium, dotted: T = {network.time_step}"}, width=8)
    equilibrium.axes[0].axvline(network.time_step, color="0.5", linestyle=":")
    return {
        "rates": lines(*({"x": own["rates"], "yscale": "log", "title": f"{direction.capitalize()} rates",
                          "lines": by_layer([[100 * share for share in layer] for layer in own["shares"]]),
                          "xlabel": f"spikes {'of either sign ' * (direction == 'backward')}of a unit per step",
                          "ylabel": "share of the layer's units (%)"}
                         for direction, own in results["histograms"].items()), width=11),
        "equilibrium": equilibrium,
        "gradient": lines(*({"x": gradient["steps"], "lines": {name: own[kind] for name, own in weights.items()},
                             "xscale": "log", "yscale": scale, "ylabel": label,
                             "xlabel": "steps of the backward simulation, T_B",
                             "title": f"Gradient by spikes and exact gradient: {label}"}
                            for kind, label, scale in (("cosine", "cosine", "linear"),
                                                       ("error", "relative error", "log"))), width=12),
        "raster": raster(recording.trains), "potentials": potentials(recording, network),
        "energy": energy({title: results["energy"][title]["energy"] for title in ("inference", "training")})}


def lines(*panels: Mapping[str, Any], width: float) -> Any:
    """A figure of panels side by side, each with the arguments of :func:`draw_lines`, and one legend for all."""
    figure, axes = new_figure(1, len(panels), width=width, height=4.2)
    for own, panel in zip(axes[0], panels):
        draw_lines(own, **panel)
    explain(axes[0, -1])
    return figure


def raster(trains: Mapping[str, Sequence[Any]]) -> Any:
    """Spikes of some units, for 'forward' and 'backward' and every layer ``(steps, units)`` of -1, 0 and 1."""

    def draw(own: Any, direction: str, layer: int) -> None:
        train = trains[direction][layer]
        for sign, look in SIGNS.items():
            step, unit = (train == sign).nonzero(as_tuple=True)
            own.scatter(step + 1, unit, s=14, marker="|", linewidths=1.5, **look)
        own.set(ylim=(-1, train.shape[1]), yticks=[], xlim=(0, len(train) + 1))

    return _every_layer(len(trains["forward"]), "spikes", draw)


def potentials(recording: Any, network: Any) -> Any:
    """Membrane potentials, for the library's neurons those before the reset, of one unit of every layer: of those shown
    the one that sent most backward spikes."""
    trains, most = recording.trains, network.couple.v_threshold
    thresholds = {"forward": [network.neuron.v_threshold], "backward": [most, -most]}

    def draw(own: Any, direction: str, layer: int) -> None:
        unit = int(trains["backward"][layer].abs().sum(0).argmax())
        potential, spikes = recording.potentials[direction][layer][:, unit], trains[direction][layer][:, unit]
        own.plot(range(1, len(potential) + 1), potential, color="0.35", linewidth=0.9, label="potential")
        own.hlines(thresholds[direction], 1, len(potential), color="black", linestyle="--", linewidth=0.8,
                   label="threshold")
        for sign, look in SIGNS.items():
            step = (spikes == sign).nonzero()[:, 0]
            own.scatter(step + 1, potential[step], s=14, zorder=3, **look)

    known = type(network.neuron) in LIBRARY and type(network.couple) in LIBRARY
    return _every_layer(len(trains["forward"]), f"potential of a unit{', before the reset' * known}", draw)


def energy(tables: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Any:
    """Energy of a sample, a panel for each entry: by network and model, pJ."""
    figure, axes = new_figure(1, len(tables), width=12, height=3.2)
    for own, (title, networks) in zip(axes[0], tables.items()):
        for offset, model, shade in zip((-0.2, 0.2), next(iter(networks.values())), ("0.3", "0.8")):
            bars = own.barh([place + offset for place in range(len(networks))], height=0.38, color=shade,
                            width=[values[model] / 1e6 for values in networks.values()], edgecolor="black",
                            linewidth=0.6, label=model)
            own.bar_label(bars, fmt=number, padding=3, fontsize="x-small")
        own.set(xscale="log", xlabel="µJ, logarithmic", title=f"{title.capitalize()}: energy of a sample")
        own.set_yticks(range(len(networks)), [name.replace(" through", "\nthrough") for name in networks])
        own.margins(x=0.2)
        own.invert_yaxis()
    explain(axes[0, -1])
    return figure


def _every_layer(layers: int, what: str, draw: Callable[[Any, str, int], None]) -> Any:
    """A row for each layer, last on top, a column for each direction; ``draw(axes, direction, layer)`` fills one."""
    figure, axes = new_figure(layers, 2, width=12, height=1 + 1.2 * layers, sharex="col", width_ratios=(1, 2.2))
    for column, direction in zip(axes.T, DIRECTIONS):
        column[0].set_title(f"{direction.capitalize()}: {what}", fontsize="medium")
        column[-1].set_xlabel("step")
        for layer, own in enumerate(reversed(column)):
            own.set_ylabel(f"layer {layer}" if direction == "forward" else "")
            draw(own, direction, layer)
    explain(axes[0, 1])
    return figure
