"""Geometry of synapses and layers as the fast engines see it: which weight row a spike adds to which target pixel.

Every synapse of the library, and every transpose of one, is a *route*: a window that slides over an image, from source
to target or the other way round. ``Linear`` is a window as large as its image. The weights of a route are stored as
rows, one per tap and source channel, each with a value per target channel, so that a spike is the number of its row.
"""
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import parametrize

from modules import synapses
from modules.circuit import Connection
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

    A synapse of a user's own is believed what it says of its window only after a comparison, on one sample of spikes
    drawn at random, with its current and its transpose.
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
    if kind.__module__ == synapses.__name__:
        return None
    if not _agrees(known, connection):
        return f"the window of the synapse {kind.__name__} says something else than its current or transpose does"
    return None


def _agrees(known: Route, connection: Connection) -> bool:
    """Whether a route carries what the current and the transpose of its connection are, on one sample of spikes."""
    like = next((t for t in (known.weight, *connection.tensors) if t is not None), torch.zeros(()))
    generator, bias = torch.Generator().manual_seed(0), connection.bias
    spikes, signals = (torch.randint(0, 2, (1, *shape), generator=generator).to(like)
                       for shape in (connection.input_shape, connection.output_shape))
    current = connection.synapse.current(spikes, connection.weight, bias, connection.output_shape)
    try:
        found, back = _carried(known, spikes), _carried(known.reverse(1.0), signals)
        found = found if bias is None else found + bias.view(known.target[0], 1, 1)
    except RuntimeError:  # sizes that do not fit
        return False
    return _close(found, current, known.target) and _close(back, connection.transpose(signals), known.source)


def _carried(route: Route, units: Tensor) -> Tensor:
    """What a route carries, as one product of whole tensors."""
    apart = torch.eye(route.source[0]).to(units).expand(*route.kernel, -1, -1)
    weight = (apart if route.weight is None else route.weight) * route.scale
    units = units.view(-1, *route.source)
    if not route.spreads:
        return F.conv2d(units, weight.permute(3, 2, 0, 1), None, route.stride, route.padding)
    missing = [large - (small - 1) * route.stride + 2 * route.padding - kernel
               for large, small, kernel in zip(route.target[1:], route.source[1:], route.kernel)]
    return F.conv_transpose2d(units, weight.permute(2, 3, 0, 1), None, route.stride, route.padding, missing)


def _close(found: Tensor, expected: Tensor, shape: Shape) -> bool:
    """Equality up to the order of sums."""
    size = expected.abs().max().clamp(min=1e-30)
    return found.shape[1:] == shape and bool(((found - expected.view_as(found)).abs() <= 1e-4 * size).all())
