"""Pictures of a report and of runs. Layers differ in lightness, line and marker, so that they do in grey print too."""
import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.files import write_atomically
from utils.pages import number

LINES, MARKERS = ("-", "--", "-.", ":"), "osD^v<>P"
SIGNS = {1: ("#08306b", "spike of +1"), -1: ("#f28e2b", "spike of −1")}  # dark and light


def new_figure(rows: int, columns: int, *, width: float, height: float, **settings: Any) -> tuple[Any, Any]:
    """A figure that no display is needed for, whatever backend is set, and its axes ``(rows, columns)``."""
    backend = os.environ.pop("MPLBACKEND", None)  # matplotlib cannot be imported where that names one which is absent
    try:
        from matplotlib.figure import Figure  # takes a second to import, which only who draws need wait for
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **settings)


def save(figure: Any, path: Path) -> None:
    """Write a figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_atomically(path, buffer.getvalue())


def style(place: int, count: int) -> dict[str, Any]:
    """How to draw a line, by its place among ``count``."""
    from matplotlib import colormaps

    return {"color": colormaps["viridis"](0.88 * place / max(1, count - 1)), "linestyle": LINES[place % len(LINES)],
            "marker": MARKERS[place % len(MARKERS)], "markersize": 4, "linewidth": 1.4}


def points(x: Sequence[float], y: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """Where there are values, and the values."""
    kept = [(place, value) for place, value in zip(x, y) if value is not None]
    return [place for place, _ in kept], [value for _, value in kept]


def draw_lines(axes: Any, x: Sequence[float], lines: Mapping[str, Sequence[float | None]], **labels: Any) -> None:
    """Lines by name over ``x``, through what is not None; on a logarithmic axis they have gaps where they are 0."""
    for place, (name, y) in enumerate(lines.items()):
        if labels.get("yscale") == "log":
            y = [math.nan if value == 0 else value for value in y]
        axes.plot(*points(x, y), label=name, markevery=max(1, len(x) // 30), **style(place, len(lines)))
    axes.set(**labels)
    axes.grid(alpha=0.3)


def by_layer(values: Sequence[Any]) -> dict[str, Any]:
    """An entry for each layer, with its name."""
    return {f"layer {layer}": value for layer, value in enumerate(values)}


def rates(histograms: Mapping[str, Mapping[str, Any]]) -> Any:
    """Histograms of the units' rates, 'forward' and 'backward', a line per layer; see utils.measures.histogram."""
    figure, axes = new_figure(1, 2, width=11, height=4)
    for own, (direction, found) in zip(axes[0], histograms.items()):
        draw_lines(own, found["rates"], by_layer([[100 * share for share in layer] for layer in found["shares"]]),
                   yscale="log", title=f"{direction.capitalize()} rates", ylabel="share of the layer's units (%)",
                   xlabel=f"spikes {'of either sign ' * (direction == 'backward')}of a unit per step")
    _legend(figure, axes[0, 0])
    return figure


def raster(trains: Mapping[str, Sequence[Any]]) -> Any:
    """Spikes of some units of every layer.

    Args:
        trains: for 'forward' and 'backward', per layer, ``(steps, units)`` of -1, 0 and 1.
    """
    figure, panels = _panels(trains, "spikes")
    for own, direction, layer in panels:
        train = trains[direction][layer]
        for sign, (colour, name) in SIGNS.items():
            step, unit = (train == sign).nonzero(as_tuple=True)
            own.scatter(step + 1, unit, s=14, marker="|", color=colour, label=name, linewidths=1.5)
        own.set(ylim=(-1, train.shape[1]), yticks=[], xlim=(0, len(train) + 1),
                ylabel=f"layer {layer}\n{train.shape[1]} units" if direction == "forward" else "")
    _legend(figure, own, markerscale=2)
    return figure


def potentials(trains: Mapping[str, Sequence[Any]], traces: Mapping[str, Sequence[Any]],
               thresholds: Mapping[str, Sequence[float]]) -> Any:
    """Membrane potentials, before the reset, of the unit of every layer that sent most backward spikes.

    Args:
        trains, traces: for 'forward' and 'backward', per layer, spikes and potentials ``(steps, units)``.
        thresholds: of each direction.
    """
    figure, panels = _panels(trains, "potential of a unit, before the reset")
    for own, direction, layer in panels:
        unit = int(trains["backward"][layer].abs().sum(0).argmax())
        potential, spikes = traces[direction][layer][:, unit], trains[direction][layer][:, unit]
        own.plot(range(1, len(potential) + 1), potential, color="0.35", linewidth=0.9, label="potential")
        own.hlines(thresholds[direction], 1, len(potential), color="black", linestyle="--", linewidth=0.8,
                   label="threshold")
        for sign, (colour, name) in SIGNS.items():
            step = (spikes == sign).nonzero()[:, 0]
            own.scatter(step + 1, potential[step], s=14, zorder=3, color=colour, label=name)
        own.grid(alpha=0.3)
        own.set_ylabel(f"layer {layer}" if direction == "forward" else "")
    _legend(figure, own)
    return figure


def equilibrium(found: Mapping[str, Any], time_step: int) -> Any:
    """Distance from the equilibrium over steps; see :func:`utils.measures.equilibrium`."""
    figure, ((axes,),) = new_figure(1, 1, width=8, height=4.2)
    draw_lines(axes, found["steps"], by_layer(found["distances"]), xscale="log", yscale="log",
               xlabel="steps of simulation", ylabel="mean of |a − clip(I(a)/κ, 0, 1)|",
               title="Distance from the equilibrium")
    axes.axvline(time_step, color="0.5", linestyle=":", label=f"T = {time_step}")
    _plain_ticks(axes.xaxis, found["steps"])
    _legend(figure, axes)
    return figure


def gradient(found: Mapping[str, Any]) -> Any:
    """Cosine and relative error over T_B, a line for each weight; see :func:`utils.measures.gradient`."""
    weights = {name: own for name, own in found["parameters"].items() if "bias" not in name}
    figure, axes = new_figure(1, 2, width=12, height=4.2)
    for own, kind, label, scale in zip(axes[0], ("cosine", "error"), ("cosine", "relative error"), ("linear", "log")):
        draw_lines(own, found["steps"], {name: values[kind] for name, values in weights.items()}, xscale="log",
                   yscale=scale, xlabel="steps of the backward simulation, T_B", ylabel=label,
                   title=f"Gradient by spikes and exact gradient: {label}")
        _plain_ticks(own.xaxis, found["steps"])
    _legend(figure, axes[0, 1])
    return figure


def energy(tables: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Any:
    """Energy of a sample, a panel for each entry: by network and model, pJ."""
    figure, axes = new_figure(1, len(tables), width=12, height=4.2)
    for own, (title, networks) in zip(axes[0], tables.items()):
        models = list(next(iter(networks.values())))
        for offset, (model, shade) in zip((-0.27, 0, 0.27), zip(models, ("0.2", "0.55", "0.85"))):
            bars = own.barh([place + offset for place in range(len(networks))], height=0.25, color=shade,
                            width=[values[model] / 1e6 for values in networks.values()], edgecolor="black",
                            linewidth=0.6, label=model)
            own.bar_label(bars, fmt=number, padding=3, fontsize="x-small")
        own.set(xscale="log", xlabel="µJ, logarithmic", title=f"{title.capitalize()}: energy of a sample", ymargin=0.05)
        own.set_yticks(range(len(networks)), [name.replace(" through", "\nthrough").replace(", ", ",\n")
                                              for name in networks])
        own.margins(x=0.2)
        own.invert_yaxis()
    _legend(figure, axes[0, 0], place="outside lower center", ncols=3)
    return figure


def _panels(trains: Mapping[str, Sequence[Any]], what: str) -> tuple[Any, Iterator[tuple[Any, str, int]]]:
    """A figure with a row for each layer, the last one on top, and a column for each direction; and its panels."""
    count = len(trains["forward"])
    figure, axes = new_figure(count, 2, width=12, height=1 + 1.2 * count, sharex="col", width_ratios=(1, 2.2))
    for column, direction in enumerate(trains):
        axes[0, column].set_title(f"{direction.capitalize()}: {what}", fontsize="medium")
        axes[-1, column].set_xlabel("step")
    return figure, ((axes[count - 1 - layer, column], direction, layer)
                    for column, direction in enumerate(trains) for layer in range(count))


def _legend(figure: Any, axes: Any, place: str = "outside right upper", **settings: Any) -> None:
    """One legend for all panels, beside them, where it covers nothing."""
    figure.legend(*axes.get_legend_handles_labels(), loc=place, fontsize="small", **settings)


def _plain_ticks(axis: Any, values: Sequence[int]) -> None:
    """Ticks of a logarithmic axis at these values, written as they are."""
    axis.set_ticks(list(values), [str(value) for value in values])
    axis.set_ticks([], minor=True)
