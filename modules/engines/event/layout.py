"""What the compiled loops read and write: a ring as tables and arrays, and the way there from tensors and back.

Units of a layer lie pixel by pixel, channels padded to whole vectors, in blocks of channels that a kernel handles
together.
"""
import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from modules.engines.event import costs
from modules.engines.ring import Ring
from modules.engines.routes import WIDTHS, as_image, padded, pixel_by_pixel, to_layer

ROOM = 16  # numbers behind lists, as they are read and written in whole vectors
WORD = 64  # bits in which the spikes of a pixel are handled together
STEPS = 32  # most steps that a layer of a chain takes at once


def _record(*names: str) -> np.dtype:
    """The type of a row of a table of integers."""
    return np.dtype([(name, np.int64) for name in names], align=True)


LAYER = _record(
    "height", "width", "channels", "padded", "block",  # its image; channels with padding, and of one block
    "units", "spikes", "pointers", "words",  # where its units, lists, pointers, words begin among a sample's
    "line",  # bits of a pixel
    "spike_column",  # what a spike's number grows by from column to column
    "weights", "weight_rows", "bias",  # of its route; where weights and bias (or -1) begin
    "pool", "masked",  # kinds of route
    "window_rows", "window_columns")  # where the windows of its route begin
WINDOW_ROW, WINDOW_COLUMN = _record("row", "shift"), _record("first", "after", "shift")  # see Route
VISIT = _record("pixel", "begin", "end")  # its spikes lie in Scratch.rows


class Plan(NamedTuple):
    """What stays the same from call to call."""

    layers: np.ndarray  # LAYER of each layer
    weights: np.ndarray  # of all routes, like the next four
    bias: np.ndarray
    row_begins: np.ndarray  # see Route, as for the next two
    row_windows: np.ndarray
    column_windows: np.ndarray
    pool: np.ndarray  # factor of a pooling route, per layer
    signs: np.ndarray  # 1 and -1
    gate: np.ndarray  # uint8, a bit for each unit, (batch * words * 8); where 0, a spike is counted but not sent
    keep: np.ndarray  # likewise, which units of the first layer the closing route reaches, or empty where it is all
    upper: np.floating  # of the neurons, like the next three
    lower: np.floating  # -inf for neurons that fire one sign only
    quantum: np.floating
    leak: np.floating
    batch: int  # number of samples
    units: int  # of one sample in the arrays, like the next three
    spikes: int
    pointers: int
    words: int


class State(NamedTuple):
    """What changes from step to step, for all samples."""

    potentials: np.ndarray  # (batch * units), of each layer block by block of channels, (pixels, channels of the block)
    traces: np.ndarray  # likewise, weighted sums of spikes, whole numbers where they do not leak
    counts: np.ndarray  # likewise, numbers of spikes, or empty where traces are just that
    spikes: np.ndarray  # int32 (2, batch * spikes), lists of this step and of the one before, and some room behind them
    pointers: np.ndarray  # int32, likewise
    dense: np.ndarray  # -1, 0, 1 of layers that write spikes so, (batch, pixels, padded channels), layer behind layer
    waiting: np.ndarray  # uint8 (batch * layers), whether a unit of the layer is still beyond a threshold
    fired: np.ndarray  # int64 (batch * layers), numbers of spikes so far
    sent: np.ndarray  # likewise, of those that passed the gate

    @classmethod
    def at_rest(cls, ring: Ring, plan: Plan, steps: int, counts: bool) -> "State":
        """Potentials of 0, and no spikes; those of a chain are nowhere but on a :class:`Desk`."""
        units, layers, numbers = plan.batch * plan.units, len(plan.layers), plan.weights.dtype
        listed = plan.batch if ring.closed else 0
        whole = np.int16 if steps < 2**15 else np.int32
        return cls(
            potentials=np.zeros(units, numbers), traces=np.zeros(units, whole if plan.leak == 1 else numbers),
            counts=np.zeros(units if counts else 0, whole),
            spikes=np.empty(2 * listed * plan.spikes + ROOM, np.int32),
            pointers=np.zeros(2 * listed * plan.pointers, np.int32),
            dense=np.empty(listed * plan.units, numbers), waiting=np.zeros(listed * layers, np.uint8),
            fired=np.zeros(plan.batch * layers, np.int64), sent=np.zeros(listed * layers, np.int64))


class Scratch(NamedTuple):
    """What one thread needs for one step of one layer of some samples; memory that no spike needs is never touched."""

    visits: np.ndarray  # VISIT of each pixel that changes
    begins: np.ndarray  # int64 (samples + 1), where the visits of each sample begin
    rows: np.ndarray  # int32, the rows of weights of spikes, as numbers
    up: np.ndarray  # uint8, bits of the units that fire, laid out as in Plan.gate
    down: np.ndarray

    @classmethod
    def of(cls, ring: Ring, plan: Plan) -> "Scratch":
        """Room for any layer of as many samples as take a step together."""
        samples = min(plan.batch, costs.TOGETHER)
        areas = plan.layers["height"] * plan.layers["width"]
        bits = samples * plan.words * WORD // 8
        return cls(
            visits=np.empty(samples * areas.max(initial=0), VISIT), begins=np.empty(samples + 1, np.int64),
            rows=np.empty(samples * (areas * reach(ring)).max(initial=0) + ROOM, np.int32),
            up=np.zeros(bits, np.uint8), down=np.zeros(bits, np.uint8))


class Desk(NamedTuple):
    """What one thread needs for some steps of one layer of one sample, where layers form a chain; memory likewise."""

    arriving: np.ndarray  # (STEPS * channels of a block), the currents into a pixel; zeros between two pixels
    # uint32 (2, units of the largest layer), spikes of a layer and of the one before, pixel by pixel, a bit for a step
    up: np.ndarray
    down: np.ndarray  # likewise, negative ones
    spikes: np.ndarray  # int32, lists of the layer before, and some room behind them
    pointers: np.ndarray  # uint32, likewise
    rows: np.ndarray  # int32, the spikes that reach a pixel in a step
    sent: np.ndarray  # int64, number of spikes of each layer

    @classmethod
    def of(cls, ring: Ring, plan: Plan) -> "Desk":
        """Room for any layer."""
        area, L = plan.layers["height"] * plan.layers["width"], plan.layers
        units = 2 * (area * L["padded"]).max()
        return cls(
            arriving=np.zeros(STEPS * WIDTHS[-1], plan.weights.dtype), up=np.empty(units, np.uint32),
            down=np.empty(units, np.uint32), spikes=np.empty(STEPS * (area * L["channels"]).max() + ROOM, np.int32),
            pointers=np.empty(STEPS * (area + L["height"]).max(), np.uint32),
            rows=np.empty(reach(ring).max(initial=0) + ROOM, np.int32), sent=np.zeros(len(L), np.int64))


def reach(ring: Ring) -> np.ndarray:
    """How many spikes can reach a pixel of each layer in a step."""
    return np.array([0 if r is None else math.prod(r.kernel) * r.source[0] for r in ring.routes])


def lay_out(ring: Ring, like: Tensor) -> Plan:
    """The tables and arrays of a ring that its kernels read, in the type of ``like``."""
    numbers = like.numpy().dtype.type
    line = WORD if ring.closed else WIDTHS[0]  # bits of a pixel come in whole words, or lie close for several pixels
    pools = [route is not None and route.weight is None for route in ring.routes]
    layers = np.zeros(len(ring.shapes), LAYER)
    layers["channels"], layers["height"], layers["width"] = zip(*map(as_image, ring.shapes))
    # Narrow blocks do where what a pooling brings is added up spike by spike.
    layers["block"] = [WIDTHS[0] if ring.closed and own else WIDTHS[-1] for own in pools]
    layers["padded"] = [padded(*pair) for pair in layers[["channels", "block"]].tolist()]
    layers["line"] = -(-layers["padded"] // line) * line
    layers["weight_rows"] = [0 if route is None else route.rows for route in ring.routes]
    layers["pool"], layers["masked"][0], layers["bias"] = pools, ring.keep is not None, -1
    area = layers["height"] * layers["width"]
    sizes = {"units": area * layers["padded"], "spikes": area * layers["channels"],
             "pointers": area + layers["height"],
             "words": -(-area * layers["line"] // WORD),
             "weights": layers["weight_rows"] * layers["padded"]}
    for name, own in sizes.items():
        layers[name] = own.cumsum() - own
    total = {name: int(own.sum()) for name, own in sizes.items()}
    weights = like.new_empty(total.pop("weights"))
    biases, begins, windows, columns = [like.new_empty(0)], [], [], []
    for number, (L, route, bias) in enumerate(zip(layers, ring.routes, ring.biases)):
        if route is None:
            continue
        layers["spike_column"][number - 1] = route.column_step
        row_begins, row_windows = route.row_windows
        L["window_rows"], L["window_columns"] = len(begins), len(columns)
        begins += [len(windows) + n for n in row_begins]
        windows += row_windows
        columns += route.column_windows
        if route.weight is not None:
            route.write_weights(weights[L["weights"]:])
        if bias is not None:
            L["bias"] = sum(map(len, biases))
            biases.append(F.pad(bias, (0, int(L["padded"]) - len(bias))).repeat(max(1, int(L["block"] // L["padded"]))))
    return Plan(
        layers=layers, weights=weights.numpy(), bias=torch.cat(biases).numpy(),
        row_begins=np.array(begins, np.int64), row_windows=np.array(windows, WINDOW_ROW),
        column_windows=np.array(columns, WINDOW_COLUMN),
        pool=np.array([0 if r is None else r.scale for r in ring.routes], numbers), signs=np.array([1, -1], numbers),
        gate=_bits(ring.gates, layers, total["words"]),
        keep=np.empty(0, np.uint8) if ring.keep is None else _bits([ring.keep], layers, total["words"]),
        upper=numbers(ring.upper), lower=numbers(ring.lower), quantum=numbers(ring.quantum), leak=numbers(ring.leak),
        batch=len(ring.gates[0]), **total)


def image_of(L: np.void) -> tuple[int, int, int]:
    """Height, width and padded channels of the layer ``L``."""
    return L[["height", "width", "padded"]].item()


def to_pixels(tensor: Tensor, L: np.void) -> Tensor:
    """``(n, *shape)`` of the layer ``L`` as contiguous ``(n, height, width, padded channels)``, a view if it can be."""
    image = pixel_by_pixel(tensor)
    missing = int(L["padded"]) - image.shape[-1]
    return (F.pad(image, (0, missing)) if missing else image).contiguous()  # padding by nothing would copy


def layers_of(ring: Ring, plan: Plan, array: np.ndarray, like: Tensor) -> list[Tensor]:
    """A tensor ``(batch, *shape)`` of the type of ``like`` for each layer from an array of units."""
    units, found = torch.from_numpy(array).view(plan.batch, plan.units), []
    for L, shape in zip(plan.layers, ring.shapes):
        image, first = like.new_empty((plan.batch, *L[["height", "width", "channels"]].item())), int(L["units"])
        for block in image.split(int(L["block"]), -1):
            own = *block.shape[1:3], padded(block.shape[-1])
            after = first + math.prod(own)
            block.copy_(units[:, first:after].unflatten(1, own)[..., :block.shape[-1]])
            first = after
        found.append(to_layer(image, shape))
    return found


def _bits(gates: list[Tensor], layers: np.ndarray, words: int) -> np.ndarray:
    """Gates ``(batch, *shape)`` of the first layers as bytes, ``(batch * words * 8)``, a bit for each unit."""
    bits = torch.zeros((len(gates[0]), words * WORD), dtype=torch.bool)
    for gate, L in zip(gates, layers):
        pixels, first = pixel_by_pixel(gate), int(L["words"]) * WORD
        shape = *pixels.shape[1:3], int(L["line"])
        own = bits[:, first:first + math.prod(shape)].unflatten(1, shape)
        own[..., :pixels.shape[-1]] = pixels
    return np.packbits(bits.numpy(), bitorder="little")
