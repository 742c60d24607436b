"""The Triton kernel of the CUDA engine: one step of one layer, from the spikes that arrive to the spikes that it sends.

The convolution is a product of matrices whose rows are target pixels, and the update of the neurons its epilogue, so
that currents never leave the registers. Spikes are exact in bfloat16; weights may be split in two bfloat16 terms. Runs
on a CPU too, under ``TRITON_INTERPRET=1``.
"""
import triton
import triton.language as tl


@triton.jit(do_not_specialize=["step"])  # or it would be compiled for 1, for multiples of 16, and for the rest
def step_layer(
    arriving, weights, rest_of_weights, bias, keep, current, potentials, traces, counts, gate, spikes, fired,
    heard, said, step,
    pixels, height, width, channels, source_height, source_width, source_channels,
    upper, lower, quantum, leak, scale,
    KERNEL_HEIGHT: tl.constexpr, KERNEL_WIDTH: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    SPREADS: tl.constexpr, ROUTE: tl.constexpr, POOL: tl.constexpr, SPLIT: tl.constexpr, BIAS: tl.constexpr,
    KEEP: tl.constexpr, CURRENT: tl.constexpr, COUNTS: tl.constexpr, SENDS: tl.constexpr, SKIP: tl.constexpr,
    WIDEN: tl.constexpr, PRECISION: tl.constexpr, BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
    BLOCK_SOURCE: tl.constexpr,
):
    """All tensors are ``(batch, height, width, channels)``, ``pixels`` is ``batch * height * width`` of the target.

    ``weights`` and their rest are ``(tap, target channel, source channel)``: tensor cores take float32 only so.
    ROUTE, BIAS, KEEP, CURRENT, COUNTS, SENDS: which of the tensors there are; the first layer has a CURRENT. POOL:
    channels stay apart, with weight ``scale``. SPLIT: weights are the sum of two terms. SKIP: leave out the product
    where no spike arrives in any sample of the block; ``heard`` and ``said`` hold for each sample the step of the last
    spike that the source and this layer sent, from 1 on, 0 for none. WIDEN: multiply in float32, which changes nothing,
    as Triton's interpreter does not multiply in bfloat16.
    """
    pixel = tl.program_id(0) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    first_channel = tl.program_id(1) * BLOCK_CHANNELS
    channel = first_channel + tl.arange(0, BLOCK_CHANNELS)
    x, y, sample = pixel % width, (pixel // width) % height, pixel // (width * height)

    total = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), dtype=tl.float32)
    if ROUTE:
        blocks = 1 if POOL else tl.cdiv(source_channels, BLOCK_SOURCE)
        products = KERNEL_HEIGHT * KERNEL_WIDTH * blocks
        if SKIP:
            sent_in = step if not CURRENT else step - 1  # spikes take a step to the first layer
            products *= (tl.max(tl.load(heard + sample, mask=pixel < pixels, other=-1)) >= sent_in).to(tl.int32)
        for product in range(products):  # one loop, so that loads run ahead of products from tap to tap too
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

    # A quarter of the channels at a time: registers do not hold all that a thread knows of its neurons at once.
    QUARTER: tl.constexpr = BLOCK_CHANNELS // 4
    even, odd = tl.split(total.reshape(BLOCK_PIXELS, 2, 2, QUARTER).permute(0, 3, 1, 2))
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
            if SKIP:
                tl.store(said + sample, step, mask=tl.max(tl.abs(sent), axis=1) > 0)
        number += tl.sum(tl.sum(up + down, axis=1), axis=0)
    tl.atomic_add(fired, number.to(tl.int64))
