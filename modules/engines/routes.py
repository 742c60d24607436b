"""Geometry of synapses and layers as the fast engines see it: which weight row a spike adds to which target pixel.

Every synapse of the library, and every transpose of one, is a *route*: a window that slides over an image, from source
to target or the other way round. ``Linear`` is a window as large as its image. The weights of a route are stored as
rows, one per tap and source channel, each with a value per target channel, so that a spike is the number of its row.
"""
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import parametrize

from modules import synapses
from modules.circuit import Connection
from modules.probe import EXAMPLES, example
from modules.synapses import Shape, Window, layout

WIDTHS = (16, 32, 48, 64)  # channels of a pixel that kernels handle together


def padded(channels: int, block: int = WIDTHS[-1]) -> int:
    """``channels`` rounded up to blocks of width ``block`` and at most one narrower one."""
    whole, rest = divmod(channels, block)
    return whole * block + min(width for width in (0, *WIDTHS) if rest <= width)


def as_image(shape: Shape) -> Shape:
    """``(channels, height, width)`` of a layer; a layer of ``n`` units without geometry is ``(n, 1, 1)``."""
    return shape if len(shape) == 3 else (*shape, 1, 1)


def pixel_by_pixel(tensor: Tensor) -> Tensor:
    """``(n, *shape)`` of a layer as ``(n, height, width, channels)``, a view."""
    return tensor.movedim(1, -1) if tensor.ndim == 4 else tensor[:, None, None]


def to_layer(pixels: Tensor, shape: Shape) -> Tensor:
    """The reverse of :func:`pixel_by_pixel` in the memory layout of simulations; padding of channels is left out."""
    image = pixels[..., :shape[0]].movedim(-1, 1).reshape(-1, *shape)
    return image.contiguous(memory_format=layout(image))


@dataclass(frozen=True, kw_only=True)
class Route(Window):
    """One linear map from the spikes of a layer to the currents of another: a window between two images."""

    source: Shape  # (channels, height, width)
    target: Shape

    @property
    def rows(self) -> int:
        """Number of rows of weights; a pooling has none."""
        return math.prod(self.kernel) * self._column

    @property
    def _column(self) -> int:
        """Number of rows of weights for one tap."""
        return 0 if self.weight is None else self.source[0]

    @property
    def column_step(self) -> int:
        """By how many rows of weights a spike moves on when it moves one column to the right."""
        return self._column * (-self.stride if self.spreads else 1)

    def write_weights(self, rows: Tensor) -> None:
        """Write all rows, block by block, scaled, padded with zeros, to a flat tensor ``(rows * padded channels,)``."""
        for own in self.weight.split(WIDTHS[-1], -1):
            width = own.shape[-1]
            block = rows[:self.rows * padded(width)].view(*own.shape[:3], -1)
            torch.mul(own, self.scale, out=block[..., :width])
            block[..., width:] = 0
            rows = rows[block.numel():]

    def _windows(self, axis: int) -> Iterator[tuple[range, int]]:
        """For each target row (axis 0) or column (1), the source rows or columns that reach it, and the tap that leads
        from the first one of the image, whether there is such a tap or not."""
        kernel, size = self.kernel[axis], self.source[1 + axis]
        for place in range(self.target[1 + axis]):
            if self.spreads:
                tap = place + self.padding
                first, end = -(-(tap - kernel + 1) // self.stride), tap // self.stride + 1
            else:
                tap = self.padding - place * self.stride
                first, end = -tap, kernel - tap
            first, end = (min(max(n, 0), size) for n in (first, end))
            yield range(first, max(first, end)), tap

    @cached_property
    def row_windows(self) -> tuple[list[int], list[tuple[int, int]]]:
        """For each target row, the source rows that reach it: where its entries begin (one number more than rows), and
        the entries, source row and the first row of weights of the taps that lead from it."""
        begins, entries = [0], []
        for sources, tap in self._windows(0):
            entries += [(row, (tap * self._column + row * self.column_step) * self.kernel[1]) for row in sources]
            begins.append(len(entries))
        return begins, entries

    @cached_property
    def column_windows(self) -> list[tuple[int, int, int]]:
        """For each target column, the first source column that reaches it, the one after the last, and by how
        many rows of weights it is further from there than from column 0."""
        return [(sources.start, sources.stop, tap * self._column) for sources, tap in self._windows(1)]

    @cached_property
    def multiplications(self) -> int:
        """How many a dense product takes for one sample, those with padding left out."""
        pairs = math.prod(sum(len(sources) for sources, _ in self._windows(axis)) for axis in (0, 1))
        return pairs * self.source[0] * self.target[0]

    def reverse(self, scale: float) -> "Route":
        """The transpose, its weight multiplied by ``scale``."""
        return replace(self, source=self.target, target=self.source, spreads=not self.spreads,
                       weight=None if self.weight is None else self.weight.transpose(2, 3), scale=self.scale * scale)


def route(connection: Connection, scale: float = 1.0) -> Route | None:
    """The forward route of a connection, its weight multiplied by ``scale``; None if it is no window."""
    own = connection.synapse.window(connection.weight, connection.input_shape, connection.output_shape)
    return own and Route(**vars(own) | {"scale": own.scale * scale}, source=as_image(connection.input_shape),
                         target=as_image(connection.output_shape))


def obstacle(connection: Connection) -> str | None:
    """Why a fast engine cannot simulate a connection, in words, or None.

    A synapse is believed what it says of its window only after a comparison, on one sample of spikes drawn at random,
    with its current; one of the library's after that of a small example, once.
    """
    synapse = connection.synapse
    kind = parametrize.type_before_parametrizations(synapse)
    own = sorted({"current", "transpose", "window"} & vars(synapse).keys())
    if own:
        return f"a synapse of type {kind.__name__} has another '{own[0]}' than its class"
    try:
        known = route(connection)
    except RuntimeError:
        if kind.__module__ != synapses.__name__:
            raise
        # The weight was replaced by one of another shape.
        return f"the weight of a synapse of type {kind.__name__} has the shape {tuple(connection.weight.shape)}"
    if known is None:
        return f"it does not know synapses of type {kind.__name__}, which define no window"
    if connection.bias is not None and connection.bias.shape != known.target[:1]:
        return f"the bias of a synapse of type {kind.__name__} is not one number for each channel"
    shape = (*known.kernel, known.source[0], known.target[0])
    if known.weight is not None and known.weight.shape != shape:
        return f"the weight of a synapse of type {kind.__name__} is not one of its window, {shape}"
    if not (_example_agrees(kind, kind.current, kind.window) if kind in EXAMPLES else _agrees(known, connection)):
        return f"the window of the synapse {kind.__name__} says something else than its current does"
    return None


@cache
def _example_agrees(kind: type[synapses.Synapse], *_: Callable) -> bool:
    """As :func:`_agrees`, for a small one of the library's synapses; and again if a method has been replaced since."""
    connection = example(kind)
    with torch.no_grad():
        return _agrees(route(connection), connection)


def _agrees(known: Route, connection: Connection) -> bool:
    """Whether a route carries the current of its connection, on one sample of spikes; the transpose is that of the
    current, as :mod:`modules.probe` has seen."""
    like = next((t for t in (known.weight, *connection.tensors) if t is not None), torch.zeros(()))
    spikes = torch.randint(0, 2, (1, *known.source), generator=torch.Generator().manual_seed(0)).to(like)
    current = connection.synapse.current(spikes.view(1, *connection.input_shape), connection.weight, connection.bias,
                                         connection.output_shape)
    apart = torch.eye(known.source[0]).to(like).expand(*known.kernel, -1, -1)
    weight = (apart if known.weight is None else known.weight) * known.scale
    try:
        if known.spreads:
            missing = [large - (small - 1) * known.stride + 2 * known.padding - kernel
                       for large, small, kernel in zip(known.target[1:], known.source[1:], known.kernel)]
            found = F.conv_transpose2d(spikes, weight.permute(2, 3, 0, 1), connection.bias, known.stride,
                                       known.padding, missing)
        else:
            found = F.conv2d(spikes, weight.permute(3, 2, 0, 1), connection.bias, known.stride, known.padding)
    except RuntimeError:  # sizes that do not fit
        return False
    size = current.abs().max().clamp(min=1e-30)  # equality is up to the order of sums
    return found.shape[1:] == known.target and bool(((found - current.view_as(found)).abs() <= 1e-4 * size).all())
