"""The Triton kernel of the CUDA engine: one step of one layer, from the spikes that arrive to the spikes that it sends.

The convolution is a product of matrices whose rows are target pixels, and the update of the neurons its epilogue, so
that currents never leave the registers. Spikes are exact in bfloat16; weights may be split in two bfloat16 terms. Runs
on a CPU too, under ``TRITON_INTERPRET=1``.
"""
import triton
import triton.language as tl


@triton.jit
def step_layer(
    arriving, weights, rest_of_weights, bias, keep, current, potentials, traces, counts, gate, spikes, fired,
    pixels, height, width, channels, source_height, source_width, source_channels,
    upper, lower, quantum, leak, scale,
    KERNEL_HEIGHT: tl.constexpr, KERNEL_WIDTH: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    SPREADS: tl.constexpr, ROUTE: tl.constexpr, POOL: tl.constexpr, SPLIT: tl.constexpr, BIAS: tl.constexpr,
    KEEP: tl.constexpr, CURRENT: tl.constexpr, COUNTS: tl.constexpr, SENDS: tl.constexpr, SKIP: tl.constexpr,
    WIDEN: tl.constexpr, PRECISION: tl.constexpr, BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
    BLOCK_SOURCE: tl.constexpr,
):
    """All tensors are ``(batch, height, width, channels)``, ``pixels`` is ``batch * height * width`` of the target.

    ROUTE, BIAS, KEEP, CURRENT, COUNTS, SENDS: which of the tensors there are. POOL: channels stay apart, with weight
    ``scale``. SPLIT: weights are the sum of two terms. SKIP: leave out products with blocks without a spike. WIDEN:
    multiply in float32, which changes nothing, as Triton's interpreter does not multiply in bfloat16.
    """
    pixel = tl.program_id(0) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    x, y, sample = pixel % width, (pixel // width) % height, pixel // (width * height)
    inside = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    unit = pixel.to(tl.int64)[:, None] * channels + channel[None, :]

    total = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), dtype=tl.float32)
    if ROUTE:
        for tap in range(KERNEL_HEIGHT * KERNEL_WIDTH):
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
                total += scale * tl.load(arriving + place[:, None] + channel[None, :], mask=met[:, None] & inside,
                                         other=0).to(tl.float32)
            else:
                for first in range(0, source_channels, BLOCK_SOURCE):
                    source = first + tl.arange(0, BLOCK_SOURCE)
                    a = tl.load(arriving + place[:, None] + source[None, :],
                                mask=met[:, None] & (source < source_channels)[None, :], other=0)
                    needed = True
                    if SKIP:
                        needed = tl.max(tl.max(tl.abs(a.to(tl.float32)), axis=1), axis=0) > 0
                    if WIDEN:
                        a = a.to(tl.float32)
                    if needed:
                        row = (tap * source_channels + source).to(tl.int64)[:, None] * channels + channel[None, :]
                        there = (source < source_channels)[:, None] & (channel < channels)[None, :]
                        w = tl.load(weights + row, mask=there, other=0)
                        if WIDEN:
                            w = w.to(tl.float32)
                        total = tl.dot(a, w, total, input_precision=PRECISION)
                        if SPLIT:
                            w = tl.load(rest_of_weights + row, mask=there, other=0)
                            if WIDEN:
                                w = w.to(tl.float32)
                            total = tl.dot(a, w, total, input_precision=PRECISION)
    if BIAS:
        total += tl.load(bias + channel, mask=channel < channels, other=0)[None, :]
    if KEEP:
        total *= tl.load(keep + unit, mask=inside, other=0).to(tl.float32)
    if CURRENT:
        total += tl.load(current + unit, mask=inside, other=0)

    potential = tl.load(potentials + unit, mask=inside, other=0) + total
    up, down = (potential >= upper).to(tl.float32), (potential <= lower).to(tl.float32)
    up, down = tl.where(inside, up, 0.0), tl.where(inside, down, 0.0)
    spike = up - down
    tl.store(potentials + unit, (potential - quantum * spike) * leak, mask=inside)
    tl.store(traces + unit, tl.load(traces + unit, mask=inside, other=0) * leak + spike, mask=inside)
    if COUNTS:
        tl.store(counts + unit, tl.load(counts + unit, mask=inside, other=0) + spike, mask=inside)
    if SENDS:
        sent = spike * tl.load(gate + unit, mask=inside, other=0).to(tl.float32)
        tl.store(spikes + unit, sent.to(spikes.dtype.element_ty), mask=inside)
    tl.atomic_add(fired, tl.sum(tl.sum(up + down, axis=1), axis=0).to(tl.int64))
