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
    """List the spikes of a layer by image row, pixel and unit."""
    L = plan.layers[layer]
    width = L[WIDTH]
    for y in range(L[HEIGHT]):
        begin, pointers = y * STEPS * width * L[CHANNELS], y * (width + 1)
        place = begin
        put(desk.pointers, pointers, 0)
        for x in range(width):
            trains = trains_of(desk, layer) + (y * width + x) * L[PADDED]
            for channel in range(0, L[PADDED], 16):
                number = x * L[SPIKE_COLUMN] + channel
                place = emit(desk.spikes, desk.up, trains + channel, number, 0, place)
                if plan.lower > -np.inf:
                    place = emit(desk.spikes, desk.down, trains + channel, number, 1, place)
            put(desk.pointers, pointers + x + 1, place - begin)


@njit(forceinline=True, **OPTIONS)
def emit(spikes, trains, unit, number, negative, place):
    """List the spikes of one sign of 16 units, the first of which has ``number``, at ``place`` and on."""
    units = meets(load(trains, unit, 16), np.uint32(0xFFFFFFFF))
    while units:
        own = lowest(units)
        train, spike = np.uint64(at(trains, unit + own)), (2 * (number + own) + negative) * STEPS
        while train:
            put(spikes, place, spike + lowest(train))
            place += 1
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


def _steps_of(width, together):
    """The steps of a block of ``width`` channels, so many pixels together: what one has to wait for, others use."""
    lanes = width * together

    @njit(forceinline=True, **OPTIONS)
    def gather(plan, desk, L, S, x, y, channel, lane):
        """Add up what the lists of the layer before bring to a pixel, and return in which steps something arrives.

        Args:
            L, S: the layer and the one before; channel: the first of the block; lane: the first of the pixel.
        """
        steps, weights = np.uint64(0), L[WEIGHTS] + channel * L[WEIGHT_ROWS]
        first, after, shift = (plan.column_windows[L[WINDOW_COLUMNS] + x, 0],
                               plan.column_windows[L[WINDOW_COLUMNS] + x, 1],
                               plan.column_windows[L[WINDOW_COLUMNS] + x, 2])
        for w in range(plan.row_begins[L[WINDOW_ROWS] + y], plan.row_begins[L[WINDOW_ROWS] + y + 1]):
            row, moved = plan.row_windows[w, 0], 2 * STEPS * (shift + plan.row_windows[w, 1])
            list_, pointers = row * STEPS * S[WIDTH] * S[CHANNELS], row * (S[WIDTH] + 1)
            for i in range(list_ + at(desk.pointers, pointers + first), list_ + at(desk.pointers, pointers + after)):
                spike = np.intp(at(desk.spikes, i)) + moved
                step, number = spike & (STEPS - 1), spike >> (STEP_BITS + 1)
                weight = load(plan.weights, weights + number * width, width)
                if plan.lower > -np.inf:
                    weight = weight * fill(at(plan.signs, (spike >> STEP_BITS) & 1), width)
                place = step * lanes + lane
                store(desk.arriving, place, load(desk.arriving, place, width) + weight)
                steps |= ONE << np.uint64(step)
        return steps

    @njit(forceinline=True, **OPTIONS)
    def pool(plan, desk, layer, L, S, x, y, channel, lane):
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
                    place = step * lanes + lane
                    arriving = load(desk.arriving, place, width)
                    arriving = subtract_where(arriving, meets(up, ONE << np.uint64(step)), -amount)
                    if plan.lower > -np.inf:
                        arriving = subtract_where(arriving, meets(down, ONE << np.uint64(step)), amount)
                    store(desk.arriving, place, arriving)
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
        gates = (sample * plan.words + L[WORDS]) * WORD + channel
        zero = fill(plan.upper - plan.upper, lanes)
        fired = sent = 0
        for pixel in range(0, area, together):
            left = every if always else np.uint64(0)
            if listens:
                for number in range(together):
                    y, x = (pixel + number) // L[WIDTH], (pixel + number) % L[WIDTH]
                    if L[POOL]:
                        left |= pool(plan, desk, layer, L, S, x, y, channel, number * width)
                    else:
                        left |= gather(plan, desk, L, S, x, y, channel, number * width)
            unit = units + pixel * width
            potential, up, down = load(state.potentials, unit, lanes), fill(NONE, lanes), fill(NONE, lanes)
            if at_least(potential, plan.upper) | at_most(potential, plan.lower):
                left |= ONE  # it is beyond a threshold from before
            if left:
                trace, gate = load(state.traces, unit, lanes), load_bits(plan.gate, gates + pixel * L[PADDED], lanes)
                while left:
                    step = lowest(left)
                    left &= left - ONE
                    arriving = load(desk.arriving, step * lanes, lanes)
                    store(desk.arriving, step * lanes, zero)
                    if L[BIAS] >= 0:
                        arriving = arriving + load(plan.bias, L[BIAS] + channel, lanes)
                    if frame >= 0:
                        outside = frame + step * stride + pixel * L[PADDED] + channel
                        arriving = arriving + load(current, outside, lanes)
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
                        potential = potential * fill(plan.leak, lanes)
                    if state.counts.size:
                        number = load(state.counts, unit, lanes)
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


take64, take48, take32, take16 = _steps_of(64, 1), _steps_of(48, 1), _steps_of(32, 1), _steps_of(16, 1)
take_two32, take_four16 = _steps_of(32, 2), _steps_of(16, 4)


@njit(**OPTIONS)
def take_steps(plan, state, desk, layer, sample, steps, weights, listens, current, frame, stride):
    """Some steps of a layer; arguments as of ``take``."""
    L = plan.layers[layer]
    area = L[HEIGHT] * L[WIDTH]
    desk.sent[layer] = 0
    if L[PADDED] == 16 and area % 4 == 0:
        take_four16(plan, state, desk, layer, sample, 0, steps, weights, listens, current, frame, stride)
        return
    if L[PADDED] == 32 and area % 2 == 0:
        take_two32(plan, state, desk, layer, sample, 0, steps, weights, listens, current, frame, stride)
        return
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
        listens = layer > 0 and not (place == places[0] and product.size)
        outside, frame, stride = current, -1, 0
        if layer == 0:
            frame = sample * size
            if frames > 1:
                stride = plan.batch * size
                frame += (begin - steps[0]) * stride
        elif not listens:
            outside, frame, stride = product, 0, size
        elif not L[POOL]:
            if desk.sent[layer - 1] > limits[layer] * (own[1] - own[0]):
                return place
            list_spikes(plan, desk, layer - 1)
        take_steps(plan, state, desk, layer, sample, own, weights, listens, outside, frame, stride)
    return places[1]
