"""The compiled loops of closed rings, forward and backward (see :mod:`modules.engines.ring`): list what arrives, add
its rows of weights, integrate, fire, reset, send.

A layer takes a step in three parts: :func:`visit` lists the spikes that reach each pixel; ``update`` adds the
rows of weights of a pixel's list to its potentials, one block of channels after another, and notes what fires as bits;
:func:`send` makes the lists of this step of them.
"""
import numpy as np

from modules.engines.event.compiled import jit, variants
from modules.engines.event.lanes import add_if, at, count, fill, load, load_bits, lowest, put, store, store_bits
from modules.engines.event.layout import WORD
from modules.engines.event.lists import Source, adder, collect, pointer
from modules.engines.event.neurons import fire


@jit(inline=True)
def source_of(plan, source, sample, step):
    """The spikes that layer ``source`` fired in ``step``."""
    S = plan.layers[source]
    place = step % 2 * plan.batch + sample
    return Source(place * plan.spikes + S.spikes, S.width * S.channels, place * plan.pointers + S.pointers, 1, S.width)


@jit()
def visit(plan, state, scratch, layer, source, sample, always, visits, place):
    """List the pixels of a layer that change, all of them if ``always``, and the spikes that reach each.

    ``visits``, ``place``: numbers of visits and of rows that are listed already; returned with those of this sample.
    """
    L = plan.layers[layer]
    always = always or state.waiting[sample * len(plan.layers) + layer]
    state.waiting[sample * len(plan.layers) + layer] = 0
    for y in range(L.height):
        begin = plan.row_begins[L.window_rows + y]
        end = plan.row_begins[L.window_rows + y + 1] if source.width else begin
        arriving = 0
        for w in range(begin, end):
            arriving += at(state.pointers, pointer(source, plan.row_windows[w].row, source.width))
        if not (always or arriving):
            continue
        for x in range(L.width):
            last = place
            if arriving:
                column = plan.column_windows[L.window_columns + x]
                last = collect(plan, state.spikes, state.pointers, source, (begin, end), column, scratch.rows, place)
            if always or last > place:
                V = scratch.visits[visits]
                V.pixel, V.begin, V.end = y * L.width + x, place, last
                visits, place = visits + 1, last
    return visits, place


@jit()
def pool(plan, state, scratch, layer, sample, number):
    """Add to the channels that spikes name; a layer that pools has blocks of one width throughout."""
    L = plan.layers[layer]
    for v in range(at(scratch.begins, number), at(scratch.begins, number + 1)):
        V = scratch.visits[v]
        units = sample * plan.units + L.units + V.pixel * L.block
        keep = (sample * plan.words + L.words) * WORD + V.pixel * L.line
        for i in range(V.begin, V.end):
            spike = np.intp(at(scratch.rows, i))
            channel, amount = spike >> 1, plan.pool[layer] * at(plan.signs, spike & 1)
            within, bit = channel % L.block, keep + channel
            unit = units + (channel - within) * L.height * L.width + within
            if not L.masked or at(plan.keep, bit >> 3) >> (bit & 7) & 1:
                put(state.potentials, unit, at(state.potentials, unit) + amount)
        V.end = V.begin  # no rows of weights are left to add


def _updates_of(width):
    """The update of a block of ``width`` channels."""
    add_rows = adder(width)

    @jit()
    def update(plan, state, scratch, layer, sample, number, channel, writes, weight, current, frame):
        """Integrate, fire, reset and count; arguments as of :func:`step_layer`, all pixels are visited if ``writes``.

        ``number``: of the sample among those of this step; ``channel``: the first of the block.
        """
        L = plan.layers[layer]
        area, line = L.height * L.width, L.line
        units, bits = sample * plan.units + L.units + channel * area, number * plan.words * WORD + channel
        gates = (sample * plan.words + L.words) * WORD + channel
        frame = frame if frame < 0 else frame + number * area * L.padded + channel
        first, after = at(scratch.begins, number), at(scratch.begins, number + 1)
        weights, fired, beyond = L.weights + channel * L.weight_rows, 0, np.uint64(0)
        for v in range(first, after):
            V = scratch.visits[v]
            pixel, unit = V.pixel, units + V.pixel * width
            potential = load(state.potentials, unit, width)
            total = fill(plan.upper - plan.upper, width) if L.masked else potential
            total = add_rows(plan, total, weights, scratch.rows, V.begin, V.end)
            if L.bias >= 0:
                total = total + load(plan.bias, L.bias + channel, width)
            if L.masked:
                total = add_if(potential, load_bits(plan.keep, gates + pixel * line, width), total)
            if frame >= 0:
                total = total + load(current, frame + pixel * L.padded, width)
            total, up, down, still = fire(plan, total)
            beyond |= still
            store(state.potentials, unit, total)
            store_bits(scratch.up, bits + pixel * line, up, width)
            store_bits(scratch.down, bits + pixel * line, down, width)
        for v in range(first, after):
            pixel = scratch.visits[v].pixel
            unit, bit = units + pixel * width, bits + pixel * line
            up, down = load_bits(scratch.up, bit, width), load_bits(scratch.down, bit, width)
            if up | down:
                trace = add_if(load(state.traces, unit, width), up, weight)
                store(state.traces, unit, add_if(trace, down, -weight))
                if state.counts.size:
                    store(state.counts, unit, add_if(load(state.counts, unit, width), up | down, 1))
                fired += count(up | down)
            if writes:
                gate = load_bits(plan.gate, gates + pixel * line, width)
                dense = add_if(fill(plan.upper - plan.upper, width), up & gate, 1)
                place = plan.batch * L.units + (sample * area + pixel) * L.padded + channel
                store(state.dense, place, add_if(dense, down & gate, -1))
                state.sent[sample * len(plan.layers) + layer] += count((up | down) & gate)
        state.fired[sample * len(plan.layers) + layer] += fired
        state.waiting[sample * len(plan.layers) + layer] |= beyond != 0

    return update


update = variants(_updates_of, (64,), (48,), (32,), (16,))


@jit(inline=True)
def emit(spikes, bits, number, negative, place):
    """List the spikes of one sign in ``bits``, whose first has ``number``, at ``place`` and on."""
    while bits:
        put(spikes, place, 2 * (number + lowest(bits)) + negative)
        place += 1
        bits &= bits - np.uint64(1)
    return place


@jit()
def send(plan, state, scratch, layer, sample, number, step):
    """List the spikes that pass the gate."""
    L = plan.layers[layer]
    width, words, bits = L.width, L.line // WORD, number * plan.words * WORD
    place = step % 2 * plan.batch + sample
    pointers, gates = place * plan.pointers + L.pointers, (sample * plan.words + L.words) * WORD
    v, end_of_visits = at(scratch.begins, number), at(scratch.begins, number + 1)  # the next visit
    sent = 0  # spikes of the rows before
    for y in range(L.height):
        begin = end = place * plan.spikes + L.spikes + y * width * L.channels
        if v < end_of_visits and scratch.visits[v].pixel < (y + 1) * width:
            for x in range(width):
                put(state.pointers, pointers + x, end - begin)
                pixel = y * width + x
                if v == end_of_visits or scratch.visits[v].pixel != pixel:
                    continue
                v += 1
                for word in range(pixel * words, (pixel + 1) * words):
                    up = load_bits(scratch.up, bits + word * WORD, WORD)
                    down = load_bits(scratch.down, bits + word * WORD, WORD)
                    if up | down:
                        gate = load_bits(plan.gate, gates + word * WORD, WORD)
                        first = x * L.spike_column + (word - pixel * words) * WORD
                        end = emit(state.spikes, up & gate, first, 0, end)
                        end = emit(state.spikes, down & gate, first, 1, end)
        put(state.pointers, pointers + width, end - begin)
        pointers += width + 1
        sent += end - begin
    state.sent[sample * len(plan.layers) + layer] += sent


@jit()
def step_layer(plan, state, scratch, layer, source_layer, writes, samples, step, weight, current, frame):
    """One step of one layer of some samples.

    Args:
        source_layer: whose spikes it takes, or -1 for none; writes: send spikes to ``State.dense``, not to lists.
        samples: first, and one after the last; weight: of this step's spikes in the traces.
        current: values from outside; frame: where those of the first of the samples begin, or -1 for none.
    """
    L, visits, rows = plan.layers[layer], 0, 0
    always = plan.leak != 1 or frame >= 0 or L.bias >= 0 or writes  # what moves a potential without a spike
    for number in range(samples[1] - samples[0]):
        sample, source = samples[0] + number, Source(0, 0, 0, 1, 0)
        if source_layer >= 0:  # the last layer of a ring is the first one's source, a step ago
            source = source_of(plan, source_layer, sample, step - (source_layer >= layer))
        scratch.begins[number] = visits
        visits, rows = visit(plan, state, scratch, layer, source, sample, always, visits, rows)
        scratch.begins[number + 1] = visits
        if L.pool:
            pool(plan, state, scratch, layer, sample, number)
    for channel in range(0, L.padded, L.block):
        width = min(L.block, L.padded - channel)
        for number in range(samples[1] - samples[0]):
            update((width,), plan, state, scratch, layer, samples[0] + number, number, channel, writes, weight,
                   current, frame)
    if not writes:
        for number in range(samples[1] - samples[0]):
            send(plan, state, scratch, layer, samples[0] + number, number, step)


@jit(entry=True)
def simulate(plan, state, scratch, samples, together, layers, steps, weights, current, frames, held, product, writes):
    """Advance some layers of some samples by some steps.

    Args:
        samples, layers, steps: first, and one after the last.
        together: number of samples that take a step together, see :func:`modules.engines.event.costs.companions`.
        weights: of all steps in the traces.
        current: from outside into the first of ``layers``, ``(frames, samples, height, width, padded channels)``, flat;
            one frame serves all steps. held: the first of its samples, and their number.
        product: ``current`` is a dense product, all that the first of ``layers`` receives besides its bias.
        writes: bit ``l`` says that layer ``l`` writes its spikes to ``State.dense``.
    """
    first = layers[0]
    size = plan.layers[first].height * plan.layers[first].width * plan.layers[first].padded
    for begin in range(samples[0], samples[1], together):
        group = begin, min(begin + together, samples[1])
        for step in range(steps[0], steps[1]):
            for layer in range(first, layers[1]):
                source, frame = (layer - 1) % len(plan.layers), -1
                if layer == first and frames:
                    frame = ((step - steps[0] if frames > 1 else 0) * held[1] + begin - held[0]) * size
                    source = -1 if product else source
                writes_own = (writes >> layer) & 1
                step_layer(plan, state, scratch, layer, source, writes_own, group, step, weights[step], current, frame)


@jit(entry=True)
def spread(plan, state, layer, samples, step, dense):
    """Write the spikes that a layer listed in ``step`` as 1 and -1.

    Args:
        samples: first, and one after the last; dense: zeros ``(samples, height, width, padded channels)``, flat.
    """
    L = plan.layers[layer]
    for sample in range(samples[0], samples[1]):
        source = source_of(plan, layer, sample, step)
        for y in range(L.height):
            begin = source.spikes + y * source.room
            if not at(state.pointers, pointer(source, y, L.width)):
                continue
            for x in range(L.width):
                pixel = (((sample - samples[0]) * L.height + y) * L.width + x) * L.padded - x * L.spike_column
                first = pointer(source, y, x)
                for i in range(at(state.pointers, first), at(state.pointers, first + source.stride)):
                    spike = np.intp(at(state.spikes, begin + i))
                    put(dense, pixel + (spike >> 1), at(plan.signs, spike & 1))
