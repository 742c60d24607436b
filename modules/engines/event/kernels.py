"""The compiled loops of the event engine: list what arrives, add its rows of weights, integrate, fire, reset, send.

Layers form a ring in the order of simulation, and the same loops run both phases. A forward ring is layer 0 to N-1,
closed by the feedback synapse; a backward ring is layer N-1 to 0, closed by the transpose of the feedback synapse.
A layer takes the spikes that the layer before it on the ring fired in this step; the first one takes those that the
last one fired in the step before, and a current from outside.

Spikes of an image row lie behind one another, from left to right, as numbers of weight rows (see
:mod:`modules.engines.routes`); of ternary spikes the positive ones stand at the front of the row's list, the negative
ones at its end. For each column it is known how many came before it. So what one row of a window adds to a target pixel
is one range of one list, whatever kernel, stride or direction.

A layer takes a step in three parts: :func:`visit` joins these ranges to one list for each pixel; ``update`` adds the
rows of weights of a pixel's list to its potentials, one block of channels after another, and notes what fires as bits;
:func:`send` makes the lists of this step of them.
"""
from typing import NamedTuple

import numpy as np
from numba import config, njit

from modules.engines.event.lanes import (
    at,
    at_least,
    at_most,
    count,
    fill,
    load,
    load_bits,
    lowest,
    moved,
    put,
    store,
    store_bits,
    subtract_where,
)
from modules.engines.event.layout import (
    BIAS,
    BLOCK,
    CHANNELS,
    HEIGHT,
    MASKED,
    PADDED,
    POINTERS,
    POOL,
    ROOM,
    SOURCE,
    SPIKE_COLUMN,
    SPIKES,
    UNITS,
    WEIGHT_ROWS,
    WEIGHTS,
    WIDTH,
    WINDOW_COLUMNS,
    WINDOW_ROWS,
    WORD,
    WORDS,
)

# No reference counts, which threads would contend for: the loops allocate nothing.
OPTIONS = {"nogil": True, "cache": bool(config.CACHE_DIR), "error_model": "numpy", "_nrt": False}


class Source(NamedTuple):
    """The spikes that arrive at a layer: where its source's lists and pointers begin, its width and a list's length."""

    spikes: int
    pointers: int
    width: int
    capacity: int


@njit(forceinline=True, **OPTIONS)
def source_of(plan, source, sample, step):
    """The spikes that layer ``source`` fired in ``step``."""
    S = plan.layers[source]
    place = step % 2 * plan.batch + sample
    return Source(place * plan.spikes + S[SPIKES], place * plan.pointers + S[POINTERS], S[WIDTH],
                  S[WIDTH] * S[CHANNELS])


@njit(forceinline=True, **OPTIONS)
def spikes_in_row(state, source, row):
    """Number of spikes in a row of the source."""
    end = source.pointers + 2 * (source.width + 1) * row + source.width
    return at(state.pointers, end) + at(state.pointers, end + source.width + 1)


@njit(forceinline=True, **OPTIONS)
def append(target, place, source, begin, end, shift):
    """Write ``source[begin:end] + shift`` to ``target[place]`` and on, and return where this ends.

    Whole vectors are written: what they hold beyond the end is overwritten or ignored later.
    """
    for first in range(begin, end, ROOM):
        store(target, place + first - begin, moved(load(source, first, ROOM), shift))
    return place + end - begin


@njit(forceinline=True, **OPTIONS)
def collect(plan, state, source, windows, window, negative, rows, place):
    """List the spikes of one sign that reach a pixel.

    Args:
        windows: first and one after the last entry of ``Plan.row_windows``; window: of ``Plan.column_windows``.
        rows, place: where the list goes.

    Returns:
        Where the list ends.
    """
    first, after, shift = plan.column_windows[window, 0], plan.column_windows[window, 1], plan.column_windows[window, 2]
    for w in range(windows[0], windows[1]):
        row = plan.row_windows[w, 0]
        if not spikes_in_row(state, source, row):
            continue  # its pointers are those of an earlier step
        pointers = source.pointers + (2 * row + negative) * (source.width + 1)
        begin, end = at(state.pointers, pointers + first), at(state.pointers, pointers + after)
        if negative:
            begin, end = source.capacity - end, source.capacity - begin
        list_ = source.spikes + row * source.capacity
        place = append(rows, place, state.spikes, list_ + begin, list_ + end, shift + plan.row_windows[w, 1])
    return place


@njit(**OPTIONS)
def visit(plan, state, scratch, layer, source, sample, always, visits, place):
    """List the pixels of a layer that change, and the spikes that reach each.

    Args:
        source: whose spikes arrive; always: all pixels change.
        visits, place: number of visits and of rows that are listed already.

    Returns:
        These numbers with those of this sample.
    """
    L = plan.layers[layer]
    both = plan.lower > -np.inf
    always = always or state.waiting[sample * len(plan.layers) + layer]
    state.waiting[sample * len(plan.layers) + layer] = 0
    for y in range(L[HEIGHT]):
        begin = plan.row_begins[L[WINDOW_ROWS] + y]
        end = plan.row_begins[L[WINDOW_ROWS] + y + 1] if source.width else begin
        arriving = 0
        for w in range(begin, end):
            arriving += spikes_in_row(state, source, plan.row_windows[w, 0])
        if not (always or arriving):
            continue
        for x in range(L[WIDTH]):
            middle = last = place
            if arriving:
                window = L[WINDOW_COLUMNS] + x
                middle = last = collect(plan, state, source, (begin, end), window, 0, scratch.rows, place)
                if both:
                    last = collect(plan, state, source, (begin, end), window, 1, scratch.rows, middle)
            if always or last > place:
                put(scratch.visits, 4 * visits, y * L[WIDTH] + x)
                put(scratch.visits, 4 * visits + 1, place)
                put(scratch.visits, 4 * visits + 2, middle)
                put(scratch.visits, 4 * visits + 3, last)
                visits, place = visits + 1, last
    return visits, place


@njit(**OPTIONS)
def pool(plan, state, scratch, layer, sample, visits):
    """Add to the channels that spikes name; blocks of a layer that pools have ``BLOCK`` channels throughout."""
    L = plan.layers[layer]
    area, block = L[HEIGHT] * L[WIDTH], L[BLOCK]
    for v in range(visits[0], visits[1]):
        begin, middle, end = at(scratch.visits, 4 * v + 1), at(scratch.visits, 4 * v + 2), at(scratch.visits, 4 * v + 3)
        units = sample * plan.units + L[UNITS] + at(scratch.visits, 4 * v) * block
        for i in range(begin, end):
            channel, amount = np.intp(at(scratch.rows, i)), plan.pool[layer]
            within = channel % block
            unit = units + (channel - within) * area + within
            amount = amount if i < middle else -amount
            amount = amount * at(plan.keep, unit) if L[MASKED] else amount
            put(state.potentials, unit, at(state.potentials, unit) + amount)
        scratch.visits[4 * v + 2] = scratch.visits[4 * v + 3] = begin  # no rows of weights are left to add


def _updates_of(width):
    """The update of a block of ``width`` channels."""
    @njit(**OPTIONS)
    def update(plan, state, scratch, layer, sample, bits, channel, visits, writes, weight, current, frame):
        """Integrate, fire, reset and count.

        Args:
            bits: where those of the sample begin; channel: the first of the block.
            visits: first, and one after the last; weight: of a spike in the traces.
            writes: send spikes to ``State.dense``; all pixels are visited then.
            current: from outside; frame: where that of this sample begins, or -1 for none.
        """
        L = plan.layers[layer]
        area, line = L[HEIGHT] * L[WIDTH], -(-L[PADDED] // WORD) * WORD  # a pixel's bits
        units = sample * plan.units + L[UNITS] + channel * area
        weights, fired, beyond = L[WEIGHTS] + channel * L[WEIGHT_ROWS], 0, np.uint64(0)
        for v in range(visits[0], visits[1]):
            pixel, begin = at(scratch.visits, 4 * v), at(scratch.visits, 4 * v + 1)
            middle, end = at(scratch.visits, 4 * v + 2), at(scratch.visits, 4 * v + 3)
            unit = units + pixel * width
            potential = load(state.potentials, unit, width)
            total = fill(plan.upper - plan.upper, width) if L[MASKED] else potential
            for i in range(begin, middle):
                total = total + load(plan.weights, weights + at(scratch.rows, i) * width, width)
            for i in range(middle, end):
                total = total - load(plan.weights, weights + at(scratch.rows, i) * width, width)
            if L[BIAS] >= 0:
                total = total + load(plan.bias, L[BIAS] + channel, width)
            if L[MASKED]:
                total = potential + total * load(plan.keep, unit, width)
            if frame >= 0:
                total = total + load(current, frame + pixel * L[PADDED] + channel, width)
            # No branch on what fires: the processor would have to guess it, and wait for all rows to see it was wrong.
            up, down = at_least(total, plan.upper), at_most(total, plan.lower)
            total = subtract_where(total, up, plan.quantum)
            total = subtract_where(total, down, -plan.quantum)
            beyond |= at_least(total, plan.upper) | at_most(total, plan.lower)
            if plan.leak != 1:
                total = total * fill(plan.leak, width)
            store(state.potentials, unit, total)
            store_bits(scratch.up, bits + pixel * line + channel, up, width)
            store_bits(scratch.down, bits + pixel * line + channel, down, width)
        for v in range(visits[0], visits[1]):
            pixel = at(scratch.visits, 4 * v)
            unit, bit = units + pixel * width, pixel * line + channel
            up, down = load_bits(scratch.up, bits + bit, width), load_bits(scratch.down, bits + bit, width)
            if up | down:
                trace = subtract_where(load(state.traces, unit, width), up, -weight)
                store(state.traces, unit, subtract_where(trace, down, weight))
                if state.counts.size:
                    store(state.counts, unit, subtract_where(load(state.counts, unit, width), up | down, -1))
                fired += count(up | down)
            if writes:
                gate = load_bits(plan.gate, (sample * plan.words + L[WORDS]) * WORD + bit, width)
                dense = subtract_where(fill(plan.upper - plan.upper, width), up & gate, -1)
                place = plan.batch * L[UNITS] + (sample * area + pixel) * L[PADDED] + channel
                store(state.dense, place, subtract_where(dense, down & gate, 1))
                state.sent[sample * len(plan.layers) + layer] += count((up | down) & gate)
        state.fired[sample * len(plan.layers) + layer] += fired
        state.waiting[sample * len(plan.layers) + layer] |= beyond != 0

    return update


update64, update48, update32, update16 = _updates_of(64), _updates_of(48), _updates_of(32), _updates_of(16)


@njit(forceinline=True, **OPTIONS)
def emit(spikes, bits, number, place, step):
    """List the spikes in ``bits``, whose first has ``number``, at ``place`` and on, in the direction of ``step``."""
    while bits:
        put(spikes, place, number + lowest(bits))
        place += step
        bits &= bits - np.uint64(1)
    return place


@njit(**OPTIONS)
def send(plan, state, scratch, layer, sample, bits, step, visits):
    """List the spikes that pass the gate."""
    L = plan.layers[layer]
    width, column, words = L[WIDTH], L[SPIKE_COLUMN], -(-L[PADDED] // WORD)
    place = step % 2 * plan.batch + sample
    pointers, gates = place * plan.pointers + L[POINTERS], (sample * plan.words + L[WORDS]) * WORD
    (v, end_of_visits), sent = visits, 0  # the next visit, and spikes of the rows before
    for y in range(L[HEIGHT]):
        begin = place * plan.spikes + L[SPIKES] + y * width * L[CHANNELS]
        end = begin + width * L[CHANNELS] - 1
        front, back = begin, end  # where the next spikes of this row go
        if v < end_of_visits and at(scratch.visits, 4 * v) < (y + 1) * width:
            for x in range(width):
                put(state.pointers, pointers + x, front - begin)
                put(state.pointers, pointers + width + 1 + x, end - back)
                pixel = y * width + x
                if v == end_of_visits or at(scratch.visits, 4 * v) != pixel:
                    continue
                v += 1
                for word in range(pixel * words, (pixel + 1) * words):
                    up = load_bits(scratch.up, bits + word * WORD, WORD)
                    down = load_bits(scratch.down, bits + word * WORD, WORD)
                    if up | down:
                        gate = load_bits(plan.gate, gates + word * WORD, WORD)
                        number = x * column + (word - pixel * words) * WORD
                        front = emit(state.spikes, up & gate, number, front, 1)
                        back = emit(state.spikes, down & gate, number, back, -1)
        put(state.pointers, pointers + width, front - begin)
        put(state.pointers, pointers + 2 * width + 1, end - back)
        pointers += 2 * (width + 1)
        sent += front - begin + end - back
    state.sent[sample * len(plan.layers) + layer] += sent


@njit(forceinline=True, **OPTIONS)
def visits_of(scratch, number):
    """First and one after the last visit of a sample of this step."""
    return at(scratch.begins, number), at(scratch.begins, number + 1)


@njit(**OPTIONS)
def step_layer(plan, state, scratch, layer, source_layer, writes, samples, step, weight, current, frame):
    """One step of one layer of some samples.

    Args:
        source_layer: whose spikes it takes, or -1 for none; writes: send spikes to ``State.dense``, not to lists.
        samples: first, and one after the last; weight: of this step's spikes in the traces.
        current: values from outside; frame: where those of the first of the samples begin, or -1 for none.
    """
    L, visits, rows, bits = plan.layers[layer], 0, 0, plan.words * WORD
    always = plan.leak != 1 or frame >= 0 or L[BIAS] >= 0 or writes  # what moves a potential without a spike
    for number in range(samples[1] - samples[0]):
        sample, source = samples[0] + number, Source(0, 0, 0, 0)
        if source_layer >= 0:  # the last layer of a ring is the first one's source, a step ago
            source = source_of(plan, source_layer, sample, step - (source_layer >= layer))
        scratch.begins[number] = visits
        visits, rows = visit(plan, state, scratch, layer, source, sample, always, visits, rows)
        scratch.begins[number + 1] = visits
        if L[POOL]:
            pool(plan, state, scratch, layer, sample, visits_of(scratch, number))
    for channel in range(0, L[PADDED], L[BLOCK]):
        width = min(L[BLOCK], L[PADDED] - channel)
        for number in range(samples[1] - samples[0]):
            sample, own, begin = samples[0] + number, visits_of(scratch, number), number * bits
            outside = frame if frame < 0 else frame + number * L[HEIGHT] * L[WIDTH] * L[PADDED]
            if width == 64:
                update64(plan, state, scratch, layer, sample, begin, channel, own, writes, weight, current, outside)
            elif width == 48:
                update48(plan, state, scratch, layer, sample, begin, channel, own, writes, weight, current, outside)
            elif width == 32:
                update32(plan, state, scratch, layer, sample, begin, channel, own, writes, weight, current, outside)
            else:
                update16(plan, state, scratch, layer, sample, begin, channel, own, writes, weight, current, outside)
    if not writes:
        for number in range(samples[1] - samples[0]):
            send(plan, state, scratch, layer, samples[0] + number, number * bits, step, visits_of(scratch, number))


@njit(**OPTIONS)
def simulate(plan, state, scratch, samples, together, layers, steps, weights, current, frames, held, product, writes):
    """Advance some layers of some samples by some steps.

    Args:
        samples, layers, steps: first, and one after the last.
        together: number of samples that take a step together: they share the weights that a cache holds, where one
            sample alone for all steps keeps its potentials there.
        weights: of all steps in the traces.
        current: from outside into the first of ``layers``, ``(frames, samples, height, width, padded channels)``, flat;
            one frame serves all steps. held: the first of its samples, and their number.
        product: ``current`` is a dense product, all that the first of ``layers`` receives besides its bias.
        writes: bit ``l`` says that layer ``l`` writes its spikes to ``State.dense``.
    """
    first = layers[0]
    size = plan.layers[first, HEIGHT] * plan.layers[first, WIDTH] * plan.layers[first, PADDED]
    for begin in range(samples[0], samples[1], together):
        group = begin, min(begin + together, samples[1])
        for step in range(steps[0], steps[1]):
            for layer in range(first, layers[1]):
                source, frame = plan.layers[layer, SOURCE], -1
                if layer == first and frames:
                    frame = ((step - steps[0] if frames > 1 else 0) * held[1] + begin - held[0]) * size
                    source = -1 if product else source
                writes_own = (writes >> layer) & 1
                step_layer(plan, state, scratch, layer, source, writes_own, group, step, weights[step], current, frame)


@njit(**OPTIONS)
def spread(plan, state, layer, samples, step, dense):
    """Write the spikes that a layer listed in ``step`` as 1 and -1.

    Args:
        samples: first, and one after the last; dense: zeros ``(samples, height, width, padded channels)``, flat.
    """
    L = plan.layers[layer]
    one = plan.upper / plan.upper
    for sample in range(samples[0], samples[1]):
        source = source_of(plan, layer, sample, step)
        for y in range(L[HEIGHT]):
            up = source.pointers + 2 * (source.width + 1) * y
            if not spikes_in_row(state, source, y):
                continue
            down = up + source.width + 1
            begin = source.spikes + y * source.capacity
            end = begin + source.capacity
            for x in range(L[WIDTH]):
                pixel = (((sample - samples[0]) * L[HEIGHT] + y) * L[WIDTH] + x) * L[PADDED] - x * L[SPIKE_COLUMN]
                for e in range(begin + at(state.pointers, up + x), begin + at(state.pointers, up + x + 1)):
                    dense[pixel + state.spikes[e]] = one
                for e in range(end - at(state.pointers, down + x + 1), end - at(state.pointers, down + x)):
                    dense[pixel + state.spikes[e]] = -one
