"""The Triton kernels of the CUDA engine: from the spikes that arrive at a layer to the spikes that it sends.

The convolution is a product of matrices whose rows are target pixels, and the update of the neurons its epilogue, so
that currents never leave the registers (:func:`step_layer`). Where no spike comes back to a layer, the products of some
steps are formed at once (:func:`carry`), then its neurons take these steps (:func:`step_neurons`). Spikes are exact in
bfloat16; weights may be split in two bfloat16 terms. Runs on a CPU too, under ``TRITON_INTERPRET=1``.

All tensors are ``(samples, height, width, channels)``. Kernels take their arguments in named groups, by keyword; a
tensor that there is not is None, and the kernel is compiled without it.
"""
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor


class Arriving(NamedTuple):
    """The spikes that arrive at a layer."""

    spikes: Tensor  # of the source
    heard: Tensor | None  # of each sample, the step of its last spike, from 1 on, 0 for none; None to form all products
    height: int  # of the source
    width: int
    channels: int


class Synapse(NamedTuple):
    """What the spikes are multiplied with."""

    weight: Tensor | None  # (tap, target, source channel), as tensor cores take float32 only so; None for a pooling
    rest: Tensor | None  # a second term of the weight
    scale: float  # the weight of each tap of a pooling
    bias: Tensor | None  # of each target channel


class Window(NamedTuple):
    """Constants of the window that slides over the source, or over the target if it ``spreads``; see ``Route``."""

    height: int
    width: int
    stride: int
    padding: int
    spreads: bool


class Target(NamedTuple):
    """The layer that is computed."""

    pixels: int  # of all samples, samples * height * width
    height: int
    width: int
    channels: int


class Tile(NamedTuple):
    """Constants of a block."""

    pixels: int  # how many of the target it computes
    channels: int
    source: int = 0  # how many source channels it multiplies at once


class Neurons(NamedTuple):
    """The neurons of a layer."""

    potentials: Tensor
    traces: Tensor
    counts: Tensor | None  # of the spikes of each unit, or None to count none
    fired: Tensor  # of the layer, the number of spikes so far, int64
    upper: float  # see Ring, as for the next three
    lower: float
    quantum: float
    leak: float | None  # None of neurons that do not leak


class Sending(NamedTuple):
    """Where spikes go."""

    spikes: Tensor | None  # those of units whose gate is 1; None if nobody listens
    gate: Tensor
    said: Tensor | None  # the step, for each sample that sends, which the next layer takes as Arriving.heard


def constant(group: Window | Tile) -> Window | Tile:
    """The group as constants, which a kernel is compiled for."""
    return type(group)(*map(tl.constexpr, group))


@triton.jit
def aligned_block(window, target, tile):
    """The target pixels and channels of this block, and the first row and column of taps that its pixels meet.

    Where a window of stride ``s`` spreads, a pixel meets every ``s``-th tap, and its row and column modulo ``s`` tell
    the first. They are the same for all pixels of a block, so that none of them forms products with 0.
    """
    stride = window.stride if window.spreads else 1
    columns = tl.cdiv(target.width, stride)
    area = tl.cdiv(target.height, stride) * columns
    pixels = target.pixels // (target.height * target.width) * area
    blocks = tl.cdiv(pixels, tile.pixels)
    row, column = tl.program_id(0) // blocks // stride, tl.program_id(0) // blocks % stride
    place = tl.program_id(0) % blocks * tile.pixels + tl.arange(0, tile.pixels)
    y, x = place % area // columns * stride + row, place % columns * stride + column
    inside = (place < pixels) & (y < target.height) & (x < target.width)
    pixel = tl.where(inside, (place // area * target.height + y) * target.width + x, target.pixels)
    return (pixel, tl.program_id(1) * tile.channels + tl.arange(0, tile.channels),
            (row + window.padding) % stride, (column + window.padding) % stride)


@triton.jit
def units(target, pixel, channel):
    """Where the units of some pixels and channels stand in a tensor, and which of them there are."""
    return (pixel.to(tl.int64)[:, None] * target.channels + channel[None, :],
            (pixel < target.pixels)[:, None] & (channel < target.channels)[None, :])


@triton.jit
def synaptic_current(arriving, synapse, window, target, tile, pixel, channel, first_row, first_column, since):
    """What spikes and bias add to a block of target units, float32 ``(tile.pixels, tile.channels)``.

    ``pixel``, ``channel``, ``first_row``, ``first_column``: of :func:`aligned_block`; ``since``: the step, or that of
    each pixel's sample, in which the spikes were sent, if there are any.
    """
    x, y = pixel % target.width, (pixel // target.width) % target.height
    sample = pixel // (target.width * target.height)
    apart = window.stride if window.spreads else 1  # the taps that a pixel meets
    columns = tl.cdiv(window.width - first_column, apart)
    taps = tl.cdiv(window.height - first_row, apart) * columns
    blocks = 1 if synapse.weight is None else tl.cdiv(arriving.channels, tile.source)
    products = taps * blocks
    if arriving.heard is not None:  # none, if no spike arrives in the whole block
        last = tl.load(arriving.heard + sample, mask=pixel < target.pixels, other=-1)
        products *= tl.max((last >= since).to(tl.int32))
    total = tl.zeros((tile.pixels, tile.channels), dtype=tl.float32)
    # One loop, so that loads run ahead of products from tap to tap too.
    for product in range(products):
        tap, first = product // blocks, product % blocks * tile.source
        tap_y, tap_x = first_row + tap // columns * apart, first_column + tap % columns * apart
        if window.spreads:
            from_y, from_x = (y + window.padding - tap_y) // apart, (x + window.padding - tap_x) // apart
            met = (y + window.padding >= tap_y) & (x + window.padding >= tap_x)
        else:
            from_y, from_x = y * window.stride - window.padding + tap_y, x * window.stride - window.padding + tap_x
            met = (from_y >= 0) & (from_x >= 0)
        met = met & (from_y < arriving.height) & (from_x < arriving.width) & (pixel < target.pixels)
        place = ((sample * arriving.height + from_y) * arriving.width + from_x).to(tl.int64) * arriving.channels
        if synapse.weight is None:
            total += synapse.scale * tl.load(arriving.spikes + place[:, None] + channel[None, :], other=0,
                                             mask=met[:, None] & (channel < target.channels)[None, :]).to(tl.float32)
        else:
            source = first + tl.arange(0, tile.source)
            spikes = tl.load(arriving.spikes + place[:, None] + source[None, :], other=0,
                             mask=met[:, None] & (source < arriving.channels)[None, :])
            row = ((tap_y * window.width + tap_x) * target.channels + channel).to(tl.int64)
            stored = row[None, :] * arriving.channels + source[:, None]
            there = (source < arriving.channels)[:, None] & (channel < target.channels)[None, :]
            weight = tl.load(synapse.weight + stored, mask=there, other=0)
            total = tl.dot(spikes, weight, total, input_precision="ieee")
            if synapse.rest is not None:
                rest = tl.load(synapse.rest + stored, mask=there, other=0)
                total = tl.dot(spikes, rest, total, input_precision="ieee")
    if synapse.bias is not None:
        total += tl.load(synapse.bias + channel, mask=channel < target.channels, other=0)[None, :]
    return total


@triton.jit
def advance(neurons, potential, current):
    """One step of neurons: integrate, fire, reset, leak; what lies outside of the image stays 0, and does not fire.

    Returns the potential after it, the spikes, and how many fired, up or down.
    """
    potential += current
    up, down = (potential >= neurons.upper).to(tl.float32), (potential <= neurons.lower).to(tl.float32)
    spike = up - down
    potential -= neurons.quantum * spike
    if neurons.leak is not None:
        potential *= neurons.leak
    return potential, spike, tl.sum(tl.sum(up + down, axis=1), axis=0)


@triton.jit
def add_spikes(neurons, unit, inside, spike):
    """Count the spikes of one step; a trace that does not leak, and a count, change only where a unit fires."""
    fires = inside & (spike != 0)
    if neurons.leak is None:
        tl.store(neurons.traces + unit, tl.load(neurons.traces + unit, mask=fires, other=0) + spike, mask=fires)
    else:
        trace = tl.load(neurons.traces + unit, mask=inside, other=0)
        tl.store(neurons.traces + unit, trace * neurons.leak + spike, mask=inside)
    if neurons.counts is not None:
        tl.store(neurons.counts + unit, tl.load(neurons.counts + unit, mask=fires, other=0) + spike, mask=fires)


@triton.jit
def send(sending, sent, unit, inside, place, step):
    """Write the spikes of some units, which passed the gate, and in ``said``, at ``place``, that samples spoke."""
    tl.store(sending.spikes + unit, sent.to(sending.spikes.dtype.element_ty), mask=inside)
    if sending.said is not None:
        tl.store(sending.said + place, step, mask=tl.max(tl.abs(sent), axis=1) > 0)


@triton.jit(do_not_specialize=["step"])  # or it would be compiled for 1, for multiples of 16, and for the rest
def step_layer(arriving, synapse, window, target, tile, keep, current, neurons, sending, step):
    """One step of one layer.

    ``current``: from outside, which the first layer has, else None; ``keep``: which of its units the synapse reaches,
    or None for all. ``step``: its number in the loop, from 1 on.
    """
    pixel, channel, first_row, first_column = aligned_block(window, target, tile)
    since = step if current is None else step - 1  # spikes take a step to the first layer
    whole = synaptic_current(arriving, synapse, window, target, tile, pixel, channel, first_row, first_column, since)
    # A quarter of the channels at a time: registers do not hold all that a thread knows of its neurons at once.
    QUARTER: tl.constexpr = tile.channels // 4
    even, odd = tl.split(whole.reshape(tile.pixels, 2, 2, QUARTER).permute(0, 3, 1, 2))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    parts = (first, second, third, fourth)
    number = 0.0
    for part in tl.static_range(4):
        total = parts[part]
        unit, inside = units(target, pixel, tl.program_id(1) * tile.channels + part * QUARTER + tl.arange(0, QUARTER))
        if keep is not None:
            total *= tl.load(keep + unit, mask=inside, other=0).to(tl.float32)
        if current is not None:
            total += tl.load(current + unit, mask=inside, other=0)
        potential = tl.load(neurons.potentials + unit, mask=inside, other=0)
        potential, spike, fired = advance(neurons, potential, total)
        tl.store(neurons.potentials + unit, potential, mask=inside)
        add_spikes(neurons, unit, inside, spike)
        if sending.spikes is not None:
            sent = spike * tl.load(sending.gate + unit, mask=inside, other=0).to(tl.float32)
            send(sending, sent, unit, inside, pixel // (target.width * target.height), step)
        number += fired
    tl.atomic_add(neurons.fired, number.to(tl.int64))


@triton.jit(do_not_specialize=["step"])
def carry(arriving, synapse, window, target, tile, carried, batch, step):
    """The currents of some steps into a layer, written to ``carried``.

    Samples of all groups are those of the first step, number ``step``, then those of the next, ``batch`` for each.
    """
    pixel, channel, first_row, first_column = aligned_block(window, target, tile)
    unit, inside = units(target, pixel, channel)
    since = step + pixel // (target.width * target.height) // batch
    total = synaptic_current(arriving, synapse, window, target, tile, pixel, channel, first_row, first_column, since)
    tl.store(carried + unit, total, mask=inside)


@triton.jit(do_not_specialize=["step", "steps"])
def step_neurons(target, tile, current, frame, neurons, sending, step, steps):
    """Some steps of a layer whose currents are known: what it knows of its neurons stays in registers meanwhile.

    ``current``: of all steps; ``frame``: the size of that of one step, or 0 if it is constant. ``step``: number of the
    first step, of ``steps``; in ``sending``, samples are those of the first step, then those of the next.
    """
    pixel = tl.program_id(0) * tile.pixels + tl.arange(0, tile.pixels)
    channel = tl.program_id(1) * tile.channels + tl.arange(0, tile.channels)
    unit, inside = units(target, pixel, channel)
    area = target.width * target.height
    potential = tl.load(neurons.potentials + unit, mask=inside, other=0)
    trace = tl.load(neurons.traces + unit, mask=inside, other=0)
    count = trace if neurons.counts is None else tl.load(neurons.counts + unit, mask=inside, other=0)
    if sending.spikes is not None:
        gate = tl.load(sending.gate + unit, mask=inside, other=0).to(tl.float32)
    number = 0.0
    for ahead in range(steps):
        total = tl.load(current + tl.cast(ahead, tl.int64) * frame + unit, mask=inside, other=0)
        potential, spike, fired = advance(neurons, potential, total)
        trace = spike + (trace if neurons.leak is None else trace * neurons.leak)
        count += spike
        if sending.spikes is not None:
            send(sending, spike * gate, tl.cast(ahead, tl.int64) * target.pixels * target.channels + unit, inside,
                 ahead * (target.pixels // area) + pixel // area, step + ahead)
        number += fired
    tl.store(neurons.potentials + unit, potential, mask=inside)
    tl.store(neurons.traces + unit, trace, mask=inside)
    if neurons.counts is not None:
        tl.store(neurons.counts + unit, count, mask=inside)
    tl.atomic_add(neurons.fired, number.to(tl.int64))
