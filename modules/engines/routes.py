"""Geometry of a synapse as the event engine sees it: which weight row a spike adds to which target pixel.

Every synapse of the library, and every transpose of one, is a *route*: a window of ``kernel`` taps that slides over an
image, from source to target or the other way round. ``Linear`` is a window as large as its image. The weights of a
route are stored as rows, one per tap and source channel, each with a value per target channel, so that a spike is the
number of its row.
"""
import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import parametrize

from modules import synapses
from modules.circuit import Connection
from modules.synapses import Shape

WIDTHS = (16, 32, 48, 64)  # channels of a pixel that kernels handle together


def padded(channels: int, block: int = WIDTHS[-1]) -> int:
    """``channels`` rounded up to blocks of width ``block`` and at most one narrower one."""
    whole, rest = divmod(channels, block)
    return whole * block + min(width for width in (0, *WIDTHS) if rest <= width)


def blocks(channels: int, block: int) -> list[tuple[int, int]]:
    """First channel and width of each block of ``channels`` that are padded already."""
    return [(first, min(block, channels - first)) for first in range(0, channels, block)]


def as_image(shape: Shape) -> Shape:
    """``(channels, height, width)`` of a layer; a layer of ``n`` units without geometry is ``(n, 1, 1)``."""
    return shape if len(shape) == 3 else (*shape, 1, 1)


@dataclass(frozen=True, kw_only=True)
class Route:
    """One linear map from the spikes of a layer to the currents of another.

    Attributes:
        source, target: ``(channels, height, width)`` of the two layers.
        kernel: height and width of the window; stride, padding: of the window, as in a convolution.
        spreads: the window slides over the target, as in a transposed convolution, not over the source.
        weight: ``(kernel height, kernel width, source channels, target channels)``, or None for a pooling.
        scale: factor on the weight; the weight itself for a pooling.
    """

    source: Shape
    target: Shape
    kernel: tuple[int, int]
    stride: int = 1
    padding: int = 0
    spreads: bool = False
    weight: Tensor | None
    scale: float = 1.0

    @property
    def rows(self) -> int:
        """Number of rows of weights; a pooling has none."""
        return 0 if self.weight is None else math.prod(self.kernel) * self.source[0]

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
        begin = 0
        for first, width in blocks(padded(self.target[0]), WIDTHS[-1]):
            own = self.weight[..., first:first + width]
            block = rows[begin:begin + self.rows * width].view(*own.shape[:3], width)
            torch.mul(own, self.scale, out=block[..., :own.shape[-1]])
            block[..., own.shape[-1]:] = 0
            begin += block.numel()

    @cached_property
    def row_windows(self) -> tuple[list[int], list[tuple[int, int]]]:
        """For each target row, the source rows that reach it.

        Returns:
            Where the entries of each target row begin (one number more than rows), and the entries: source row, and
            the first row of weights of the taps that lead from it.
        """
        begins, entries = [0], []
        height, width = self.kernel
        for y in range(self.target[1]):
            for source in range(self.source[1]):
                large, small = (y, source) if self.spreads else (source, y)
                tap = large + self.padding - small * self.stride
                if 0 <= tap < height:
                    entries.append((source, tap * width * self._column))
            begins.append(len(entries))
        return begins, entries

    @cached_property
    def column_windows(self) -> list[tuple[int, int, int]]:
        """For each target column, the first source column that reaches it, the one after the last, and by how
        many rows of weights it is further from there than from column 0."""
        windows = []
        for x in range(self.target[2]):
            if self.spreads:
                origin = x + self.padding
                first, end = -(-(origin - self.kernel[1] + 1) // self.stride), origin // self.stride + 1
            else:
                origin = -(x * self.stride - self.padding)
                first, end = -origin, -origin + self.kernel[1]
            first, end = (min(max(n, 0), self.source[2]) for n in (first, end))
            windows.append((first, max(first, end), origin * self._column))
        return windows

    @cached_property
    def multiplications(self) -> int:
        """How many a dense product takes for one sample, those with padding left out."""
        rows = len(self.row_windows[1])
        columns = sum(after - first for first, after, _ in self.column_windows)
        return rows * columns * self.source[0] * self.target[0]

    def reverse(self, scale: float) -> "Route":
        """The transpose, its weight multiplied by ``scale``."""
        return replace(self, source=self.target, target=self.source, spreads=not self.spreads,
                       weight=None if self.weight is None else self.weight.transpose(2, 3), scale=self.scale * scale)


def route(connection: Connection, scale: float = 1.0) -> Route | None:
    """The forward route of a connection, its weight multiplied by ``scale``; None if it is no window."""
    own = connection.synapse.window(connection.weight, connection.input_shape, connection.output_shape)
    return own and Route(source=as_image(connection.input_shape), target=as_image(connection.output_shape),
                         kernel=own.kernel, stride=own.stride, padding=own.padding, spreads=own.spreads,
                         weight=own.weight, scale=own.scale * scale)


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
    if kind.__module__ == synapses.__name__:
        return None
    known = route(connection)
    if known is None:
        return f"it does not know synapses of type {kind.__name__}, which define no window"
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
    weight = torch.eye(route.source[0]).to(units).expand(*route.kernel, -1, -1) if route.weight is None else route.weight
    weight, settings = weight * route.scale, {"stride": route.stride, "padding": route.padding}
    units = units.view(-1, *route.source)
    if not route.spreads:
        return F.conv2d(units, weight.permute(3, 2, 0, 1), **settings)
    least = F.conv_transpose2d(units, weight.permute(2, 3, 0, 1), **settings)
    missing = [n - m for n, m in zip(route.target[1:], least.shape[2:])]
    return F.conv_transpose2d(units, weight.permute(2, 3, 0, 1), output_padding=missing, **settings)


def _close(found: Tensor, expected: Tensor, shape: Shape) -> bool:
    """Equality up to the order of sums."""
    size = expected.abs().max().clamp(min=1e-30)
    return found.shape[1:] == shape and bool(((found - expected.view_as(found)).abs() <= 1e-4 * size).all())
