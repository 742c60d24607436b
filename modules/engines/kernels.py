"""The compiled loops of the event engine: gather the rows of spikes, integrate, fire, reset and emit, in one pass.

Layers form a ring in the order of simulation, and the same loops run both phases. A forward ring is layer 0 to N-1,
closed by the feedback synapse; a backward ring is layer N-1 to 0, closed by the transpose of the feedback synapse.
A layer takes the spikes that the layer before it on the ring fired in this step; the first one takes those that the
last one fired in the step before, and a current from outside.

Spikes of an image row lie behind one another, from left to right, as numbers of weight rows (see
:mod:`modules.engines.routes`); of ternary spikes the positive ones stand at the front of the row's list, the negative
ones at its end. For each column it is known how many came before it. So what one row of a window adds to a target pixel
is one range of one list, whatever kernel, stride or direction.
"""
from typing import NamedTuple

import numpy as np
from numba import njit

from modules.engines.lanes import at_least, at_most, count, fill, load, load_bits, lowest, store, subtract_where

# No reference counts, which threads would contend for: the loops allocate nothing.
OPTIONS = {"nogil": True, "cache": True, "error_model": "numpy", "_nrt": False}

# What is known of a layer: indices of the columns of Plan.layers.
(HEIGHT, WIDTH, CHANNELS, PADDED,  # its image; channels without and with padding
 UNITS, ROWS, SPIKES, POINTERS,  # where its units, image rows, lists and pointers begin among those of a sample
 SPIKE_COLUMN, SPIKE_CHANNEL,  # what a spike's number grows by per column and channel; 0 and 0 if nobody listens
 SOURCE, WEIGHTS, BIAS, POOL, MASKED,  # source layer or -1; where weights and bias (or -1) begin; kinds of route
 WINDOW_ROWS, WINDOW_COLUMNS,  # where the windows of its route begin
 COLUMNS) = range(18)


class Plan(NamedTuple):
    """What stays the same from call to call.

    Attributes:
        layers: ``(layers, COLUMNS)``, int64.
        weights, bias: of all routes; row_begins, row_windows, column_windows: of all routes, see ``Route``.
        pool: factor of a pooling route, per layer.
        gate: uint8, a bit for each unit, ``(batch * units / 8)``; where 0, a spike is counted but not sent.
        keep: ``(batch * units)``, factor on what reaches the first layer by the closing route, or empty.
        upper, lower, quantum, leak: of the neurons; ``lower`` is -inf for neurons that fire one sign only.
        batch: number of samples; units, rows, spikes, pointers: of one sample in the arrays of :class:`State`.
    """

    layers: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    row_begins: np.ndarray
    row_windows: np.ndarray
    column_windows: np.ndarray
    pool: np.ndarray
    gate: np.ndarray
    keep: np.ndarray
    upper: np.floating
    lower: np.floating
    quantum: np.floating
    leak: np.floating
    batch: int
    units: int
    rows: int
    spikes: int
    pointers: int


class State(NamedTuple):
    """What changes from step to step, for all samples.

    Attributes:
        potentials: ``(batch * units)``; traces: weighted sums of spikes; counts: numbers of spikes, or empty
            where traces are just that.
        spikes: int32 ``(2, batch * spikes)``, lists of this step and the one before; pointers: int32, likewise.
        dense: spikes as -1, 0 and 1 of the layers that write them so, ``(batch, units)`` of each layer behind another.
        waiting: uint8 ``(batch * rows of images)``, whether a unit of the row is still beyond a threshold.
        fired, sent: int64 ``(batch * layers)``, numbers of spikes so far, and of those that passed the gate.
    """

    potentials: np.ndarray
    traces: np.ndarray
    counts: np.ndarray
    spikes: np.ndarray
    pointers: np.ndarray
    dense: np.ndarray
    waiting: np.ndarray
    fired: np.ndarray
    sent: np.ndarray


def _updates_of(width):
    """The update of ``width`` channels of one pixel."""
    @njit(forceinline=True, **OPTIONS)
    def update(plan, state, unit, channel, weights, positive, negative, ranges, bias, masked, current, at, weight,
               dense):
        """Integrate, fire, reset and count.

        Returns:
            Bits of the units that send 1, that send -1, and that are beyond a threshold still; number that fired.
        """
        spikes = state.spikes
        potential = load(state.potentials, unit, width)
        arriving = fill(plan.upper - plan.upper, width) if masked else potential
        for r in range(positive):
            row = ranges[r, 2] + weights + channel
            for e in range(ranges[r, 0], ranges[r, 1]):
                arriving = arriving + load(plan.weights, row + spikes[e], width)
        for r in range(ranges.shape[0] - negative, ranges.shape[0]):
            row = ranges[r, 2] + weights + channel
            for e in range(ranges[r, 0], ranges[r, 1]):
                arriving = arriving - load(plan.weights, row + spikes[e], width)
        if bias >= 0:
            arriving = arriving + load(plan.bias, bias + channel, width)
        if masked:
            arriving = potential + arriving * load(plan.keep, unit, width)
        if at >= 0:
            arriving = arriving + load(current, at + channel, width)
        up, down = at_least(arriving, plan.upper), at_most(arriving, plan.lower)
        beyond, gate = np.uint64(0), load_bits(plan.gate, unit, width)
        if dense >= 0:
            one = weight / weight
            sent = subtract_where(fill(weight - weight, width), up & gate, -one)
            store(state.dense, dense + channel, subtract_where(sent, down & gate, one))
        if up | down:
            arriving = subtract_where(arriving, up, plan.quantum)
            arriving = subtract_where(arriving, down, -plan.quantum)
            beyond = at_least(arriving, plan.upper) | at_most(arriving, plan.lower)
            trace = subtract_where(load(state.traces, unit, width), up, -weight)
            store(state.traces, unit, subtract_where(trace, down, weight))
            if state.counts.size:
                spikes_before = load(state.counts, unit, width)
                store(state.counts, unit, subtract_where(spikes_before, up | down, -(weight / weight)))
        if plan.leak != 1:
            arriving = arriving * fill(plan.leak, width)
        store(state.potentials, unit, arriving)
        return up & gate, down & gate, beyond, count(up | down)

    return update


update64, update32, update16 = _updates_of(64), _updates_of(32), _updates_of(16)


@njit(forceinline=True, **OPTIONS)
def send(spikes, bits, row, channel_step, place, step):
    """Write the numbers of the spikes in ``bits`` to ``place`` and on, forwards or backwards; return the next place."""
    while bits:
        spikes[place] = row + lowest(bits) * channel_step
        bits &= bits - np.uint64(1)
        place += step
    return place


@njit(forceinline=True, **OPTIONS)
def pool(plan, state, unit, amount, masked, ranges, first, after):
    """Add ``amount`` to the channel that each spike of the ranges ``first`` to ``after`` is the number of."""
    for r in range(first, after):
        for e in range(ranges[r, 0], ranges[r, 1]):
            target = unit + state.spikes[e]
            state.potentials[target] += amount * plan.keep[target] if masked else amount


@njit(**OPTIONS)
def step_layer(plan, state, layer, source, writes, sample, parity, weight, current, frame, ranges):
    """One step of one layer of one sample.

    Args:
        source: layer whose spikes it takes, or -1 for none; writes: spikes go to ``State.dense``, not to lists.
        parity: which half of the lists this step writes.
        weight: of this step's spikes in the traces.
        current: values from outside; frame: where those of this sample begin, or -1 for none.
        ranges: int64 ``(windows, 3)``, scratch: begin and end in the lists, and what to add for the row of weights.
    """
    L = plan.layers[layer]
    height, width, padded = L[HEIGHT], L[WIDTH], L[PADDED]
    units = sample * plan.units + L[UNITS]
    row_capacity = width * L[CHANNELS]
    own_list = (parity * plan.batch + sample) * plan.spikes + L[SPIKES]
    own_pointers = (parity * plan.batch + sample) * plan.pointers + L[POINTERS]
    dense_begin = plan.batch * L[UNITS] + sample * height * width * padded
    always = plan.leak != 1 or frame >= 0 or L[BIAS] >= 0 or writes
    source_width, source_list, source_pointers, source_capacity = 0, 0, 0, 0
    if source >= 0:
        S = plan.layers[source]
        source_parity = parity if source < layer else 1 - parity
        source_width, source_capacity = S[WIDTH], S[WIDTH] * S[CHANNELS]
        source_list = (source_parity * plan.batch + sample) * plan.spikes + S[SPIKES]
        source_pointers = (source_parity * plan.batch + sample) * plan.pointers + S[POINTERS]
    line = source_width + 1  # pointers of one sign and row
    waiting = sample * plan.rows + L[ROWS]
    fired_total, sent_total = 0, 0
    for y in range(height):
        begin = plan.row_begins[L[WINDOW_ROWS] + y]
        end = plan.row_begins[L[WINDOW_ROWS] + y + 1] if source >= 0 else begin
        arriving = 0
        for w in range(begin, end):
            p = source_pointers + 2 * line * plan.row_windows[w, 0] + source_width
            arriving += state.pointers[p] + state.pointers[p + line]
        pointers = own_pointers + 2 * (width + 1) * y
        if not (always or arriving or state.waiting[waiting + y]):
            state.pointers[pointers + width] = 0
            state.pointers[pointers + 2 * width + 1] = 0
            continue
        list_begin = own_list + y * row_capacity
        list_end = list_begin + row_capacity - 1
        front, back = list_begin, list_end
        still = np.uint64(0)
        for x in range(width):
            state.pointers[pointers + x] = front - list_begin
            state.pointers[pointers + width + 1 + x] = list_end - back
            positive, negative = 0, 0
            if arriving:
                window = plan.column_windows[L[WINDOW_COLUMNS] + x]
                first, after, shift = window[0], window[1], window[2]
                for w in range(begin, end):
                    row = plan.row_windows[w, 0]
                    p = source_pointers + 2 * line * row
                    at = source_list + row * source_capacity
                    if not state.pointers[p + source_width] + state.pointers[p + line + source_width]:
                        continue  # a row that nothing reached: its other pointers are old
                    a, b = state.pointers[p + first], state.pointers[p + after]
                    if b > a:
                        ranges[positive, 0], ranges[positive, 1] = at + a, at + b
                        ranges[positive, 2] = shift + plan.row_windows[w, 1]
                        positive += 1
                    a, b = state.pointers[p + line + first], state.pointers[p + line + after]
                    if b > a:
                        negative += 1
                        r = ranges.shape[0] - negative
                        ranges[r, 0], ranges[r, 1] = at + source_capacity - b, at + source_capacity - a
                        ranges[r, 2] = shift + plan.row_windows[w, 1]
            if not (always or positive or negative or state.waiting[waiting + y]):
                continue
            unit = units + (y * width + x) * padded
            if L[POOL]:
                pool(plan, state, unit, plan.pool[layer], L[MASKED], ranges, 0, positive)
                pool(plan, state, unit, -plan.pool[layer], L[MASKED], ranges, ranges.shape[0] - negative,
                     ranges.shape[0])
                positive, negative = 0, 0
            row = x * L[SPIKE_COLUMN]
            at = frame + (y * width + x) * padded if frame >= 0 else -1
            dense = dense_begin + (y * width + x) * padded if writes else -1
            c = 0
            while c < padded:
                if padded - c >= 64:
                    up, down, beyond, fired = update64(plan, state, unit + c, c, L[WEIGHTS], positive, negative, ranges,
                                                L[BIAS], L[MASKED], current, at, weight, dense)
                    step = 64
                elif padded - c >= 32:
                    up, down, beyond, fired = update32(plan, state, unit + c, c, L[WEIGHTS], positive, negative, ranges,
                                                L[BIAS], L[MASKED], current, at, weight, dense)
                    step = 32
                else:
                    up, down, beyond, fired = update16(plan, state, unit + c, c, L[WEIGHTS], positive, negative, ranges,
                                                L[BIAS], L[MASKED], current, at, weight, dense)
                    step = 16
                still |= beyond
                fired_total += fired
                if dense >= 0:
                    front += count(up)
                    back -= count(down)
                else:
                    front = send(state.spikes, up, row + c * L[SPIKE_CHANNEL], L[SPIKE_CHANNEL], front, 1)
                    back = send(state.spikes, down, row + c * L[SPIKE_CHANNEL], L[SPIKE_CHANNEL], back, -1)
                c += step
        state.pointers[pointers + width] = front - list_begin
        state.pointers[pointers + 2 * width + 1] = list_end - back
        state.waiting[waiting + y] = still != 0
        sent_total += front - list_begin + list_end - back
    state.fired[sample * len(plan.layers) + layer] += fired_total
    state.sent[sample * len(plan.layers) + layer] += sent_total


@njit(**OPTIONS)
def simulate(plan, state, samples, layers, steps, weights, current, frames, product, writes, ranges):
    """Advance some layers of some samples by some steps.

    Args:
        samples, layers, steps: first, and one after the last.
        weights: of all steps in the traces.
        current: from outside into the first of ``layers``, ``(frames, batch, its units)``, flat; one frame serves all
            steps.
        product: ``current`` is a dense product, all that the first of ``layers`` receives besides its bias.
        writes: bit ``l`` says that layer ``l`` writes its spikes to ``State.dense``.
        ranges: scratch, see :func:`step_layer`.
    """
    first = layers[0]
    size = plan.layers[first, HEIGHT] * plan.layers[first, WIDTH] * plan.layers[first, PADDED]
    for step in range(steps[0], steps[1]):
        for layer in range(first, layers[1]):
            for sample in range(samples[0], samples[1]):
                source, frame = plan.layers[layer, SOURCE], -1
                if layer == first and frames:
                    frame = ((step - steps[0] if frames > 1 else 0) * plan.batch + sample) * size
                    source = -1 if product else source
                step_layer(plan, state, layer, source, writes >> layer & 1, sample, step & 1, weights[step], current,
                           frame, ranges)
