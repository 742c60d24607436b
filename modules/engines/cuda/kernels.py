"""The Triton kernels of the CUDA engine: from the spikes that arrive at a layer to the spikes that it sends.

The convolution is a product of matrices whose rows are target pixels, and the update of the neurons its epilogue, so
that currents never leave the registers (:func:`step_layer`). Where no spike comes back to a layer, the products of some
steps are formed at once (:func:`carry`), then its neurons take these steps (:func:`step_neurons`). Spikes are exact in
bfloat16; weights may be split in two bfloat16 terms. Runs on a CPU too, under ``TRITON_INTERPRET=1``.

All tensors are ``(samples, height, width, channels)``, ``pixels`` is ``samples * height * width`` of the target.
Weights and their rest are ``(tap, target channel, source channel)``: tensor cores take float32 only so.
"""
import triton
import triton.language as tl


@triton.jit
def synaptic_current(
    arriving, weights, rest_of_weights, source_height, source_width, source_channels, scale,
    pixel, pixels, height, width, channel, channels, wanted,
    KERNEL_HEIGHT: tl.constexpr, KERNEL_WIDTH: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    SPREADS: tl.constexpr, POOL: tl.constexpr, SPLIT: tl.constexpr, WIDEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_SOURCE: tl.constexpr,
):
    """What spikes add to a block of target units, ``(BLOCK_PIXELS, BLOCK_CHANNELS)``, float32.

    ``wanted``: 1, or 0 if no spike arrives. POOL: channels stay apart, with weight ``scale``. SPLIT: weights are the
    sum of two terms. WIDEN: multiply in float32, which changes nothing, as Triton's interpreter does not multiply in
    bfloat16.
    """
    x, y, sample = pixel % width, (pixel // width) % height, pixel // (width * height)
    total = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), dtype=tl.float32)
    blocks = 1 if POOL else tl.cdiv(source_channels, BLOCK_SOURCE)
    # One loop, so that loads run ahead of products from tap to tap too.
    for product in range(KERNEL_HEIGHT * KERNEL_WIDTH * blocks * wanted):
        tap, first = product // blocks, product % blocks * BLOCK_SOURCE
        tap_y, tap_x = tap // KERNEL_WIDTH, tap % KERNEL_WIDTH
        if SPREADS:
            from_y, from_x = y + PADDING - tap_y, x + PADDING - tap_x
            met = (from_y % STRIDE == 0) & (from_x % STRIDE == 0) & (from_y >= 0) & (from_x >= 0)
            from_y, from_x = from_y // STRIDE, from_x // STRIDE
        else:
            from_y, from_x = y * STRIDE - PADDING + tap_y, x * STRIDE - PADDING + tap_x
            met = (from_y >= 0) & (from_x >= 0)
        met = met & (from_y < source_height) & (from_x < source_width) & (pixel < pixels)
        place = ((sample * source_height + from_y) * source_width + from_x).to(tl.int64) * source_channels
        if POOL:
            total += scale * tl.load(arriving + place[:, None] + channel[None, :],
                                     mask=met[:, None] & (channel < channels)[None, :], other=0).to(tl.float32)
        else:
            source = first + tl.arange(0, BLOCK_SOURCE)
            a = tl.load(arriving + place[:, None] + source[None, :],
                        mask=met[:, None] & (source < source_channels)[None, :], other=0)
            row = (tap * channels + channel).to(tl.int64)[None, :] * source_channels + source[:, None]
            there = (source < source_channels)[:, None] & (channel < channels)[None, :]
            w = tl.load(weights + row, mask=there, other=0)
            if WIDEN:
                a, w = a.to(tl.float32), w.to(tl.float32)
            total = tl.dot(a, w, total, input_precision=PRECISION)
            if SPLIT:
                w = tl.load(rest_of_weights + row, mask=there, other=0)
                if WIDEN:
                    w = w.to(tl.float32)
                total = tl.dot(a, w, total, input_precision=PRECISION)
    return total


@triton.jit
def fire(potential, upper, lower, inside):
    """Which units fire, up and down, as float32; those outside of the image do not."""
    up, down = (potential >= upper).to(tl.float32), (potential <= lower).to(tl.float32)
    return tl.where(inside, up, 0.0), tl.where(inside, down, 0.0)


@triton.jit(do_not_specialize=["step"])  # or it would be compiled for 1, for multiples of 16, and for the rest
def step_layer(
    arriving, weights, rest_of_weights, source_height, source_width, source_channels, scale, heard,
    pixels, height, width, channels, step,
    bias, keep, current, potentials, traces, counts, gate, spikes, fired, said, upper, lower, quantum, leak,
    KERNEL_HEIGHT: tl.constexpr, KERNEL_WIDTH: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    SPREADS: tl.constexpr, POOL: tl.constexpr, SPLIT: tl.constexpr, WIDEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_SOURCE: tl.constexpr,
    SKIP: tl.constexpr, ROUTE: tl.constexpr, BIAS: tl.constexpr, KEEP: tl.constexpr, CURRENT: tl.constexpr,
    COUNTS: tl.constexpr, SENDS: tl.constexpr,
):
    """One step of one layer.

    ROUTE, BIAS, KEEP, CURRENT, COUNTS, SENDS: which of the tensors there are; the first layer has a CURRENT. SKIP:
    leave out the product where no spike arrives in any sample of the block; ``heard`` and ``said`` hold for each sample
    the step of the last spike that the source and this layer sent, from 1 on, 0 for none.
    """
    pixel = tl.program_id(0) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    first_channel = tl.program_id(1) * BLOCK_CHANNELS
    channel = first_channel + tl.arange(0, BLOCK_CHANNELS)
    sample = pixel // (width * height)

    if ROUTE:
        wanted = 1
        if SKIP:
            sent_in = step if not CURRENT else step - 1  # spikes take a step to the first layer
            wanted = (tl.max(tl.load(heard + sample, mask=pixel < pixels, other=-1)) >= sent_in).to(tl.int32)
        whole = synaptic_current(
            arriving, weights, rest_of_weights, source_height, source_width, source_channels, scale, pixel, pixels,
            height, width, channel, channels, wanted, KERNEL_HEIGHT, KERNEL_WIDTH, STRIDE, PADDING, SPREADS, POOL,
            SPLIT, WIDEN, PRECISION, BLOCK_PIXELS, BLOCK_CHANNELS, BLOCK_SOURCE)
    else:
        whole = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), dtype=tl.float32)

    # A quarter of the channels at a time: registers do not hold all that a thread knows of its neurons at once.
    QUARTER: tl.constexpr = BLOCK_CHANNELS // 4
    even, odd = tl.split(whole.reshape(BLOCK_PIXELS, 2, 2, QUARTER).permute(0, 3, 1, 2))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    parts = (first, second, third, fourth)
    number = 0.0
    for part in tl.static_range(4):
        total = parts[part]
        channel = first_channel + part * QUARTER + tl.arange(0, QUARTER)
        inside = (pixel < pixels)[:, None] & (channel < channels)[None, :]
        unit = pixel.to(tl.int64)[:, None] * channels + channel[None, :]
        if BIAS:
            total += tl.load(bias + channel, mask=channel < channels, other=0)[None, :]
        if KEEP:
            total *= tl.load(keep + unit, mask=inside, other=0).to(tl.float32)
        if CURRENT:
            total += tl.load(current + unit, mask=inside, other=0)
        potential = tl.load(potentials + unit, mask=inside, other=0) + total
        up, down = fire(potential, upper, lower, inside)
        spike = up - down
        tl.store(potentials + unit, (potential - quantum * spike) * leak, mask=inside)
        tl.store(traces + unit, tl.load(traces + unit, mask=inside, other=0) * leak + spike, mask=inside)
        if COUNTS:
            tl.store(counts + unit, tl.load(counts + unit, mask=inside, other=0) + spike, mask=inside)
        if SENDS:
            sent = spike * tl.load(gate + unit, mask=inside, other=0).to(tl.float32)
            tl.store(spikes + unit, sent.to(spikes.dtype.element_ty), mask=inside)
            if SKIP:
                tl.store(said + sample, step, mask=tl.max(tl.abs(sent), axis=1) > 0)
        number += tl.sum(tl.sum(up + down, axis=1), axis=0)
    tl.atomic_add(fired, number.to(tl.int64))


@triton.jit(do_not_specialize=["step"])
def carry(
    arriving, weights, rest_of_weights, source_height, source_width, source_channels, scale, heard,
    pixels, height, width, channels, step,
    carried, batch,
    KERNEL_HEIGHT: tl.constexpr, KERNEL_WIDTH: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    SPREADS: tl.constexpr, POOL: tl.constexpr, SPLIT: tl.constexpr, WIDEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_SOURCE: tl.constexpr,
    SKIP: tl.constexpr,
):
    """The currents of some steps into a layer; samples are those of the first step, then those of the next.

    Arguments as of :func:`step_layer`; ``step`` is the first of the steps, ``carried`` where the currents go.
    """
    pixel = tl.program_id(0) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    wanted = 1
    if SKIP:
        sample = pixel // (width * height)
        sent = tl.load(heard + sample, mask=pixel < pixels, other=-1) >= step + sample // batch
        wanted = tl.max(sent.to(tl.int32))
    total = synaptic_current(
        arriving, weights, rest_of_weights, source_height, source_width, source_channels, scale, pixel, pixels, height,
        width, channel, channels, wanted, KERNEL_HEIGHT, KERNEL_WIDTH, STRIDE, PADDING, SPREADS, POOL, SPLIT, WIDEN,
        PRECISION, BLOCK_PIXELS, BLOCK_CHANNELS, BLOCK_SOURCE)
    tl.store(carried + pixel.to(tl.int64)[:, None] * channels + channel[None, :], total,
             mask=(pixel < pixels)[:, None] & (channel < channels)[None, :])


@triton.jit(do_not_specialize=["step", "steps"])
def step_neurons(
    pixels, height, width, channels, step, steps,
    bias, current, frame, potentials, traces, counts, gate, spikes, fired, said, upper, lower, quantum, leak,
    SKIP: tl.constexpr, BIAS: tl.constexpr, COUNTS: tl.constexpr, SENDS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):
    """Some steps of a layer whose currents are known: what it knows of its neurons stays in registers meanwhile.

    Arguments as of :func:`step_layer`; ``frame`` is the size of the current of one step, or 0 if it is constant.
    """
    pixel = tl.program_id(0) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    inside = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    unit = pixel.to(tl.int64)[:, None] * channels + channel[None, :]
    area = width * height
    potential = tl.load(potentials + unit, mask=inside, other=0)
    trace = tl.load(traces + unit, mask=inside, other=0)
    if COUNTS:
        count = tl.load(counts + unit, mask=inside, other=0)
    if SENDS:
        open_ = tl.load(gate + unit, mask=inside, other=0).to(tl.float32)
    number = 0.0
    for ahead in range(steps):
        total = tl.load(current + tl.cast(ahead, tl.int64) * frame + unit, mask=inside, other=0)
        if BIAS:
            total += tl.load(bias + channel, mask=channel < channels, other=0)[None, :]
        potential += total
        up, down = fire(potential, upper, lower, inside)
        spike = up - down
        potential = (potential - quantum * spike) * leak
        trace = trace * leak + spike
        if COUNTS:
            count += spike
        if SENDS:
            sent = spike * open_
            tl.store(spikes + tl.cast(ahead, tl.int64) * pixels * channels + unit, sent.to(spikes.dtype.element_ty),
                     mask=inside)
            if SKIP:
                tl.store(said + ahead * (pixels // area) + pixel // area, step + ahead,
                         mask=tl.max(tl.abs(sent), axis=1) > 0)
        number += tl.sum(tl.sum(up + down, axis=1), axis=0)
    tl.store(potentials + unit, potential, mask=inside)
    tl.store(traces + unit, trace, mask=inside)
    if COUNTS:
        tl.store(counts + unit, count, mask=inside)
    tl.atomic_add(fired, number.to(tl.int64))
