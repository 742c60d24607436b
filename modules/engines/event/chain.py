"""The compiled loops of layers without feedback: a layer takes some steps at once before the next layer does.

What arrives at a pixel in these steps is added up in a small table, a row for each step: of the spikes in the lists of
the layer before (as in :mod:`modules.engines.event.kernels`, but each with its step), or, where a layer pools, of its
vectors. Then the neurons of the pixel take the steps in which something happens, with potentials in registers; the
steps in which a unit fired are the bits of one number.
"""
import numpy as np
from numba import njit

from modules.engines.event.kernels import OPTIONS
from modules.engines.event.lanes import (
    at,
    at_least,
    at_most,
    count,
    either,
    fill,
    load,
    load_bits,
    lowest,
    meets,
    only,
    put,
    store,
    subtract_where,
)
from modules.engines.event.layout import (
    BIAS,
    BLOCK,
    CHANNELS,
    HEIGHT,
    PADDED,
    POOL,
    SPIKE_COLUMN,
    STEP_BITS,
    STEPS,
    UNITS,
    WEIGHT_ROWS,
    WEIGHTS,
    WIDTH,
    WINDOW_COLUMNS,
    WINDOW_ROWS,
    WORD,
    WORDS,
)

ONE, NONE = np.uint64(1), np.uint32(0)


@njit(forceinline=True, **OPTIONS)
def trains_of(desk, layer):
    """Where the trains of spikes of a layer begin."""
    return layer % 2 * (desk.up.size // 2)


@njit(**OPTIONS)
def list_spikes(plan, desk, layer):
    """List the spikes of a layer by image row, pixel and unit: positive ones from the front, negative ones from the
    end of a row's room."""
    L = plan.layers[layer]
    width, room = L[WIDTH], STEPS * L[WIDTH] * L[CHANNELS]
    both = plan.lower > -np.inf
    for y in range(L[HEIGHT]):
        begin, pointers = y * room, 2 * (width + 1) * y
        front, back = begin, begin + room - 1
        for x in range(width + 1):
            put(desk.pointers, pointers + x, front - begin)
            put(desk.pointers, pointers + width + 1 + x, begin + room - 1 - back)
            if x == width:
                break
            trains = trains_of(desk, layer) + (y * width + x) * L[PADDED]
            for channel in range(0, L[PADDED], 16):
                number = (x * L[SPIKE_COLUMN] + channel) * STEPS
                front = emit(desk.spikes, desk.up, trains + channel, number, front, 1)
                if both:
                    back = emit(desk.spikes, desk.down, trains + channel, number, back, -1)


@njit(forceinline=True, **OPTIONS)
def emit(spikes, trains, unit, number, place, direction):
    """List the spikes of 16 units, the first of which has ``number``, at ``place`` and on."""
    units = meets(load(trains, unit, 16), np.uint32(0xFFFFFFFF))
    while units:
        own = lowest(units)
        train = np.uint64(at(trains, unit + own))
        while train:
            put(spikes, place, number + own * STEPS + lowest(train))
            place += direction
            train &= train - ONE
        units &= units - ONE
    return place


@njit(**OPTIONS)
def unpack(plan, desk, layer, steps, dense):
    """Write the spikes of a layer as 1 and -1; ``dense`` is ``(steps, height, width, padded channels)``, flat."""
    L = plan.layers[layer]
    units, zero = L[HEIGHT] * L[WIDTH] * L[PADDED], plan.upper - plan.upper
    for unit in range(0, units, 16):
        up = load(desk.up, trains_of(desk, layer) + unit, 16)
        down = load(desk.down, trains_of(desk, layer) + unit, 16)
        for step in range(steps):
            spikes = subtract_where(fill(zero, 16), meets(up, ONE << step), -1)
            if plan.lower > -np.inf:
                spikes = subtract_where(spikes, meets(down, ONE << step), 1)
            store(dense, step * units + unit, spikes)


def _steps_of(width):
    """The steps of a block of ``width`` channels."""
    @njit(forceinline=True, **OPTIONS)
    def add_rows(plan, desk, begin, end, shift, weights, negative):
        """Add the rows of weights of some listed spikes to what arrives, and return in which steps that is."""
        steps = np.uint64(0)
        for i in range(begin, end):
            spike = np.intp(at(desk.spikes, i)) + shift
            step, row = spike & (STEPS - 1), load(plan.weights, weights + (spike >> STEP_BITS) * width, width)
            arriving = load(desk.arriving, step * width, width)
            store(desk.arriving, step * width, arriving - row if negative else arriving + row)
            steps |= ONE << np.uint64(step)
        return steps

    @njit(forceinline=True, **OPTIONS)
    def gather(plan, desk, L, S, x, y, channel):
        """Add up what the lists of the layer before bring to a pixel, and return in which steps something arrives."""
        steps = np.uint64(0)
        weights, columns = L[WEIGHTS] + channel * L[WEIGHT_ROWS], S[WIDTH] + 1
        first, after, shift = (plan.column_windows[L[WINDOW_COLUMNS] + x, 0],
                               plan.column_windows[L[WINDOW_COLUMNS] + x, 1],
                               plan.column_windows[L[WINDOW_COLUMNS] + x, 2])
        room = STEPS * S[WIDTH] * S[CHANNELS]
        for w in range(plan.row_begins[L[WINDOW_ROWS] + y], plan.row_begins[L[WINDOW_ROWS] + y + 1]):
            row, moved = plan.row_windows[w, 0], (shift + plan.row_windows[w, 1]) * STEPS
            pointers, list_ = 2 * columns * row, row * room
            begin, end = at(desk.pointers, pointers + first), at(desk.pointers, pointers + after)
            steps |= add_rows(plan, desk, list_ + begin, list_ + end, moved, weights, False)
            if plan.lower > -np.inf:
                begin = at(desk.pointers, pointers + columns + first)
                end = at(desk.pointers, pointers + columns + after)
                steps |= add_rows(plan, desk, list_ + room - end, list_ + room - begin, moved, weights, True)
        return steps

    @njit(forceinline=True, **OPTIONS)
    def pool(plan, desk, layer, L, S, x, y, channel):
        """As :func:`gather`, where the layer pools."""
        found, amount = np.uint64(0), plan.pool[layer]
        first, after = plan.column_windows[L[WINDOW_COLUMNS] + x, 0], plan.column_windows[L[WINDOW_COLUMNS] + x, 1]
        for w in range(plan.row_begins[L[WINDOW_ROWS] + y], plan.row_begins[L[WINDOW_ROWS] + y + 1]):
            for column in range(first, after):
                pixel = plan.row_windows[w, 0] * S[WIDTH] + column
                unit = trains_of(desk, layer - 1) + pixel * S[PADDED] + channel
                up = load(desk.up, unit, width)
                down = load(desk.down, unit, width) if plan.lower > -np.inf else fill(NONE, width)
                steps = either(up) | either(down)
                found |= steps
                while steps:
                    step = lowest(steps)
                    steps &= steps - ONE
                    arriving = load(desk.arriving, step * width, width)
                    arriving = subtract_where(arriving, meets(up, ONE << np.uint64(step)), -amount)
                    if plan.lower > -np.inf:
                        arriving = subtract_where(arriving, meets(down, ONE << np.uint64(step)), amount)
                    store(desk.arriving, step * width, arriving)
        return found

    @njit(**OPTIONS)
    def take(plan, state, desk, layer, sample, channel, steps, weights, listens, current, frame, stride):
        """Some steps of a block of channels.

        Args:
            channel: the first of the block; steps: first, and one after the last; weights: of all steps in the traces.
            listens: what the layer before sends arrives.
            current: from outside; frame: where that of this sample begins, or -1 for none; stride: from step to step.
        """
        L, S = plan.layers[layer], plan.layers[layer - 1]
        both = plan.lower > -np.inf
        area, every = L[HEIGHT] * L[WIDTH], (ONE << np.uint64(steps[1] - steps[0])) - ONE
        always = plan.leak != 1 or frame >= 0 or L[BIAS] >= 0  # what moves a potential without a spike
        units, trains = sample * plan.units + L[UNITS] + channel * area, trains_of(desk, layer) + channel
        line = -(-L[PADDED] // WORD) * WORD  # a pixel's bits
        gates = (sample * plan.words + L[WORDS]) * WORD + channel
        zero = fill(plan.upper - plan.upper, width)
        fired = sent = 0
        for pixel in range(area):
            left = every if always else np.uint64(0)
            if listens:
                y, x = pixel // L[WIDTH], pixel % L[WIDTH]
                if L[POOL]:
                    left |= pool(plan, desk, layer, L, S, x, y, channel)
                else:
                    left |= gather(plan, desk, L, S, x, y, channel)
            unit = units + pixel * width
            potential, up, down = load(state.potentials, unit, width), fill(NONE, width), fill(NONE, width)
            if at_least(potential, plan.upper) | at_most(potential, plan.lower):
                left |= ONE  # it is beyond a threshold from before
            if left:
                trace, gate = load(state.traces, unit, width), load_bits(plan.gate, gates + pixel * line, width)
                while left:
                    step = lowest(left)
                    left &= left - ONE
                    arriving = load(desk.arriving, step * width, width)
                    store(desk.arriving, step * width, zero)
                    if L[BIAS] >= 0:
                        arriving = arriving + load(plan.bias, L[BIAS] + channel, width)
                    if frame >= 0:
                        outside = frame + step * stride + pixel * L[PADDED] + channel
                        arriving = arriving + load(current, outside, width)
                    potential = potential + arriving
                    weight = weights[steps[0] + step]
                    spikes, negative = at_least(potential, plan.upper), at_most(potential, plan.lower)
                    potential = subtract_where(potential, spikes, plan.quantum)
                    up = subtract_where(up, spikes, -(1 << step))
                    trace = subtract_where(trace, spikes, -weight)
                    if both:
                        potential = subtract_where(potential, negative, -plan.quantum)
                        down = subtract_where(down, negative, -(1 << step))
                        trace = subtract_where(trace, negative, weight)
                        spikes |= negative
                    if at_least(potential, plan.upper) | at_most(potential, plan.lower):
                        left |= (ONE << np.uint64(step + 1)) & every
                    if plan.leak != 1:
                        potential = potential * fill(plan.leak, width)
                    if state.counts.size:
                        number = load(state.counts, unit, width)
                        store(state.counts, unit, subtract_where(number, spikes, -1))
                    fired += count(spikes)
                    sent += count(spikes & gate)
                store(state.potentials, unit, potential)
                store(state.traces, unit, trace)
                up, down = only(up, gate), only(down, gate)
            store(desk.up, trains + pixel * L[PADDED], up)
            if both:
                store(desk.down, trains + pixel * L[PADDED], down)
        state.fired[sample * len(plan.layers) + layer] += fired
        desk.sent[layer] += sent

    return take


take64, take48, take32, take16 = _steps_of(64), _steps_of(48), _steps_of(32), _steps_of(16)


@njit(**OPTIONS)
def take_steps(plan, state, desk, layer, sample, steps, weights, listens, current, frame, stride):
    """Some steps of a layer; arguments as of ``take``."""
    L = plan.layers[layer]
    desk.sent[layer] = 0
    for channel in range(0, L[PADDED], L[BLOCK]):
        width = min(L[BLOCK], L[PADDED] - channel)
        if width == 64:
            take64(plan, state, desk, layer, sample, channel, steps, weights, listens, current, frame, stride)
        elif width == 48:
            take48(plan, state, desk, layer, sample, channel, steps, weights, listens, current, frame, stride)
        elif width == 32:
            take32(plan, state, desk, layer, sample, channel, steps, weights, listens, current, frame, stride)
        else:
            take16(plan, state, desk, layer, sample, channel, steps, weights, listens, current, frame, stride)


@njit(**OPTIONS)
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
        size = L[HEIGHT] * L[WIDTH] * L[PADDED]
        if layer == 0:
            stride, frame = 0, sample * size
            if frames > 1:
                stride = plan.batch * size
                frame += (begin - steps[0]) * stride
            take_steps(plan, state, desk, layer, sample, own, weights, False, current, frame, stride)
        elif place == places[0] and product.size:
            take_steps(plan, state, desk, layer, sample, own, weights, False, product, 0, size)
        else:
            if not L[POOL]:
                if desk.sent[layer - 1] > limits[layer] * (own[1] - own[0]):
                    return place
                list_spikes(plan, desk, layer - 1)
            take_steps(plan, state, desk, layer, sample, own, weights, True, current, -1, 0)
    return places[1]
