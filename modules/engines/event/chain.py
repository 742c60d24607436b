"""The compiled loops of layers without feedback: a layer takes some steps at once before the next layer does.

What arrives at a pixel in these steps is added up in a small table, a row for each step: of the spikes in the lists of
the layer before (:mod:`modules.engines.event.lists`, those of a step for each row), or, where a layer pools, of its
vectors. Then the neurons of the pixel take the steps in which something happens, with potentials in registers; the
steps in which a unit fired are the bits of one number.
"""
import numpy as np

from modules.engines.event.compiled import jit, variants
from modules.engines.event.lanes import add_if, at, count, fill, load, load_bits, lowest, meets, put, store, union
from modules.engines.event.layout import STEPS, WORD
from modules.engines.event.lists import Source, adder, collect, pointer
from modules.engines.event.neurons import beyond, fire

ONE, NONE, ALL = np.uint64(1), np.uint32(0), np.uint32(0xFFFFFFFF)


@jit(inline=True)
def trains_of(desk, layer):
    """Where the trains of spikes of a layer begin."""
    return layer % 2 * (desk.up.size // 2)


@jit(inline=True)
def source_of(S, step):
    """The spikes of a layer ``S`` in a step: rows follow one another, in a row steps, and pointers of all steps."""
    room = S.width * S.channels
    return Source(step * room, STEPS * room, step, STEPS, S.width)


@jit()
def list_spikes(plan, desk, layer):
    """List the spikes of a layer by image row, step, pixel and unit."""
    L, source = plan.layers[layer], source_of(plan.layers[layer], 0)
    for y in range(L.height):
        store(desk.pointers, pointer(source, y, 0), fill(NONE, STEPS))
        for x in range(L.width):
            # What comes before the next column comes before this one, or is of its units.
            pointers = pointer(source, y, x + 1)
            store(desk.pointers, pointers, load(desk.pointers, pointer(source, y, x), STEPS))
            trains = trains_of(desk, layer) + (y * L.width + x) * L.padded
            for channel in range(0, L.padded, 16):
                number = x * L.spike_column + channel
                emit(desk, L, desk.up, trains + channel, number, 0, y, pointers)
                if plan.lower > -np.inf:
                    emit(desk, L, desk.down, trains + channel, number, 1, y, pointers)


@jit(inline=True)
def emit(desk, L, trains, unit, number, negative, y, pointers):
    """List the spikes of one sign of 16 units of row ``y``, the first of which has ``number``, and count them."""
    units = meets(load(trains, unit, 16), ALL)
    while units:
        own = lowest(units)
        train, spike = np.uint64(at(trains, unit + own)), 2 * (number + own) + negative
        while train:
            step = lowest(train)
            source, before = source_of(L, step), at(desk.pointers, pointers + step)
            put(desk.spikes, source.spikes + y * source.room + before, spike)
            put(desk.pointers, pointers + step, before + np.uint32(1))
            train &= train - ONE
        units &= units - ONE


@jit(entry=True)
def unpack(plan, desk, layer, steps, dense):
    """Write the spikes of a layer as 1 and -1; ``dense`` is ``(steps, height, width, padded channels)``, flat."""
    L = plan.layers[layer]
    units, zero = L.height * L.width * L.padded, plan.upper - plan.upper
    for unit in range(0, units, 16):
        up = load(desk.up, trains_of(desk, layer) + unit, 16)
        down = load(desk.down, trains_of(desk, layer) + unit, 16)
        for step in range(steps):
            spikes = add_if(fill(zero, 16), meets(up, ONE << step), 1)
            if plan.lower > -np.inf:
                spikes = add_if(spikes, meets(down, ONE << step), -1)
            store(dense, step * units + unit, spikes)


def _steps_of(width, together):
    """The steps of a block of ``width`` channels, so many pixels together: what one has to wait for, others use."""
    lanes, add_rows = width * together, adder(width)

    @jit(inline=True)
    def gather(plan, desk, L, S, x, y, channel, lane):
        """Add up what the lists of the layer before, ``S``, bring to a pixel; return in which steps something arrives.

        ``channel``: the first of the block; ``lane``: the first of the pixel.
        """
        steps, column = np.uint64(0), plan.column_windows[L.window_columns + x]
        windows = plan.row_begins[L.window_rows + y], plan.row_begins[L.window_rows + y + 1]
        for w in range(windows[0], windows[1]):
            first = pointer(source_of(S, 0), plan.row_windows[w].row, column.first)
            after = pointer(source_of(S, 0), plan.row_windows[w].row, column.after)
            steps |= meets(load(desk.pointers, after, STEPS) - load(desk.pointers, first, STEPS), ALL)
        left = steps
        while left:
            step = lowest(left)
            left &= left - ONE
            end = collect(plan, desk.spikes, desk.pointers, source_of(S, step), windows, column, desk.rows, 0)
            total = fill(plan.upper - plan.upper, width)
            total = add_rows(plan, total, L.weights + channel * L.weight_rows, desk.rows, 0, end)
            store(desk.arriving, step * lanes + lane, total)
        return steps

    @jit(inline=True)
    def pool(plan, desk, layer, L, S, x, y, channel, lane):
        """As :func:`gather`, where the layer pools."""
        found, amount, window = np.uint64(0), plan.pool[layer], plan.column_windows[L.window_columns + x]
        for w in range(plan.row_begins[L.window_rows + y], plan.row_begins[L.window_rows + y + 1]):
            for column in range(window.first, window.after):
                pixel = plan.row_windows[w].row * S.width + column
                unit = trains_of(desk, layer - 1) + pixel * S.padded + channel
                up = load(desk.up, unit, width)
                down = load(desk.down, unit, width) if plan.lower > -np.inf else fill(NONE, width)
                steps = union(up) | union(down)
                found |= steps
                while steps:
                    step = lowest(steps)
                    steps &= steps - ONE
                    place = step * lanes + lane
                    arriving = load(desk.arriving, place, width)
                    arriving = add_if(arriving, meets(up, ONE << np.uint64(step)), amount)
                    if plan.lower > -np.inf:
                        arriving = add_if(arriving, meets(down, ONE << np.uint64(step)), -amount)
                    store(desk.arriving, place, arriving)
        return found

    @jit()
    def take(plan, state, desk, layer, sample, channel, steps, weights, listens, current, frame, stride):
        """Some steps of a block of channels.

        Args:
            channel: the first of the block; steps: first, and one after the last; weights: of all steps in the traces.
            listens: what the layer before sends arrives.
            current: from outside; frame: where that of this sample begins, or -1 for none; stride: from step to step.
        """
        L, S = plan.layers[layer], plan.layers[layer - 1]
        both = plan.lower > -np.inf
        area, every = L.height * L.width, (ONE << np.uint64(steps[1] - steps[0])) - ONE
        always = plan.leak != 1 or frame >= 0 or L.bias >= 0  # what moves a potential without a spike
        units, trains = sample * plan.units + L.units + channel * area, trains_of(desk, layer) + channel
        gates = (sample * plan.words + L.words) * WORD + channel
        zero = fill(plan.upper - plan.upper, lanes)
        fired = sent = 0
        for pixel in range(0, area, together):
            left = every if always else np.uint64(0)
            if listens:
                for number in range(together):
                    y, x = (pixel + number) // L.width, (pixel + number) % L.width
                    if L.pool:
                        left |= pool(plan, desk, layer, L, S, x, y, channel, number * width)
                    else:
                        left |= gather(plan, desk, L, S, x, y, channel, number * width)
            unit = units + pixel * width
            potential, up, down = load(state.potentials, unit, lanes), fill(NONE, lanes), fill(NONE, lanes)
            if beyond(plan, potential):
                left |= ONE  # from before
            if left:
                trace, gate = load(state.traces, unit, lanes), load_bits(plan.gate, gates + pixel * L.padded, lanes)
                while left:
                    step = lowest(left)
                    left &= left - ONE
                    arriving = load(desk.arriving, step * lanes, lanes)
                    store(desk.arriving, step * lanes, zero)
                    if L.bias >= 0:
                        arriving = arriving + load(plan.bias, L.bias + channel, lanes)
                    if frame >= 0:
                        outside = frame + step * stride + pixel * L.padded + channel
                        arriving = arriving + load(current, outside, lanes)
                    potential, spikes, negative, still = fire(plan, potential + arriving)
                    if still:
                        left |= (ONE << np.uint64(step + 1)) & every
                    weight = weights[steps[0] + step]
                    up, trace = add_if(up, spikes & gate, 1 << step), add_if(trace, spikes, weight)
                    if both:
                        down, trace = add_if(down, negative & gate, 1 << step), add_if(trace, negative, -weight)
                        spikes |= negative
                    if state.counts.size:
                        store(state.counts, unit, add_if(load(state.counts, unit, lanes), spikes, 1))
                    fired += count(spikes)
                    sent += count(spikes & gate)
                store(state.potentials, unit, potential)
                store(state.traces, unit, trace)
            store(desk.up, trains + pixel * L.padded, up)
            if both:
                store(desk.down, trains + pixel * L.padded, down)
        state.fired[sample * len(plan.layers) + layer] += fired
        desk.sent[layer] += sent

    return take


take = variants(_steps_of, (64, 1), (48, 1), (32, 2), (32, 1), (16, 4), (16, 1))


@jit(entry=True)
def simulate(plan, state, desk, places, turns, steps, limits, weights, current, frames, product):
    """Simulate until a layer wants a dense product.

    Args:
        places: first, and one after the last; a place is a sample, a turn of some steps and a layer, as one number.
        turns: how many times each layer takes steps; steps: of all turns, first, and one after the last.
        limits: for each layer, spikes in a step of a sample from which on a product pays.
        weights: of all steps in the traces.
        current: from outside into the first layer, ``(frames, batch, height, width, padded channels)``, flat; one frame
            serves all steps.
        product: of the first place, ``(steps, height, width, padded channels)``, flat, or empty.

    Returns:
        The place that wants a product, or the one after the last.
    """
    length = -(-(steps[1] - steps[0]) // turns)
    for place in range(places[0], places[1]):
        layer = place % len(plan.layers)
        sample, turn = place // len(plan.layers) // turns, place // len(plan.layers) % turns
        L, begin = plan.layers[layer], steps[0] + turn * length
        own = begin, min(begin + length, steps[1])
        size = L.height * L.width * L.padded
        listens = layer > 0 and not (place == places[0] and product.size)
        outside, frame, stride = current, -1, 0
        if layer == 0:
            stride = plan.batch * size if frames > 1 else 0
            frame = sample * size + (begin - steps[0]) * stride
        elif not listens:
            outside, frame, stride = product, 0, size
        elif not L.pool:
            if desk.sent[layer - 1] > limits[layer] * (own[1] - own[0]):
                return place
            list_spikes(plan, desk, layer - 1)
        desk.sent[layer] = 0
        together = max(1, L.block // L.padded)
        if L.height * L.width % together:
            together = 1
        for channel in range(0, L.padded, L.block):
            take((min(L.block, L.padded - channel), together), plan, state, desk, layer, sample, channel, own, weights,
                 listens, outside, frame, stride)
    return places[1]
