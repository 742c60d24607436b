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
    def update(plan, state, unit, channel, L, positive, negative, ranges, current, at, weight, dense):
        """Integrate, fire, reset and count.

        Args:
            unit: the first, in the arrays of ``state``; channel: its number; L: row of ``Plan.layers``.
            positive, negative, ranges: the spikes that arrive, see :func:`collect`.
            current, at: from outside, and where this pixel's begins in it, or -1; weight: of a spike in the traces.
            dense: where this pixel begins in ``State.dense``, or -1 if spikes do not go there.

        Returns:
            Bits of the units that send 1, that send -1, and that are beyond a threshold still; number that fired.
        """
        spikes, weights, bias, masked = state.spikes, L[WEIGHTS], L[BIAS], L[MASKED]
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
def send(spikes, bits, number, channel_step, place, step):
    """Write the numbers of the spikes in ``bits`` to ``place`` and on, forwards or backwards as ``step`` is 1 or -1."""
    while bits:
        spikes[place] = number + lowest(bits) * channel_step
        bits &= bits - np.uint64(1)
        place += step


@njit(forceinline=True, **OPTIONS)
def pool(plan, state, unit, amount, masked, ranges, first, after):
    """Add ``amount`` to the channel that each spike of the ranges ``first`` to ``after`` is the number of."""
    for r in range(first, after):
        for e in range(ranges[r, 0], ranges[r, 1]):
            target = unit + state.spikes[e]
            state.potentials[target] += amount * plan.keep[target] if masked else amount


class Source(NamedTuple):
    """The spikes that arrive at a layer: where its source's lists and pointers begin, its width and a list's length."""

    spikes: int
    pointers: int
    width: int
    capacity: int


@njit(forceinline=True, **OPTIONS)
def source_of(plan, source, layer, sample, parity):
    """The spikes of layer ``source`` as ``layer`` takes them: of this step, or of the one before around the ring."""
    S = plan.layers[source]
    place = (parity if source < layer else 1 - parity) * plan.batch + sample
    return Source(place * plan.spikes + S[SPIKES], place * plan.pointers + S[POINTERS], S[WIDTH],
                  S[WIDTH] * S[CHANNELS])


@njit(forceinline=True, **OPTIONS)
def spikes_in_row(state, source, row):
    """Number of spikes in a row of the source."""
    end = source.pointers + 2 * (source.width + 1) * row + source.width
    return state.pointers[end] + state.pointers[end + source.width + 1]


@njit(forceinline=True, **OPTIONS)
def collect(plan, state, source, windows, window, ranges):
    """Find the spikes that reach a pixel.

    Args:
        windows: first and one after the last entry of ``Plan.row_windows``; window: of ``Plan.column_windows``.
        ranges: receives a row for each range: its begin and end in ``State.spikes``, and what to add to a spike's
            number for its row of weights; positive spikes from the first row on, negative ones from the last.

    Returns:
        Numbers of ranges of positive and of negative spikes.
    """
    first, after, shift = plan.column_windows[window, 0], plan.column_windows[window, 1], plan.column_windows[window, 2]
    positive, negative = 0, 0
    for w in range(windows[0], windows[1]):
        row = plan.row_windows[w, 0]
        if not spikes_in_row(state, source, row):
            continue  # its pointers are those of an earlier step
        up = source.pointers + 2 * (source.width + 1) * row
        down = up + source.width + 1
        begin = source.spikes + row * source.capacity
        end = begin + source.capacity
        if state.pointers[up + after] > state.pointers[up + first]:
            ranges[positive, 0] = begin + state.pointers[up + first]
            ranges[positive, 1] = begin + state.pointers[up + after]
            ranges[positive, 2] = shift + plan.row_windows[w, 1]
            positive += 1
        if state.pointers[down + after] > state.pointers[down + first]:
            negative += 1
            r = ranges.shape[0] - negative
            ranges[r, 0], ranges[r, 1] = end - state.pointers[down + after], end - state.pointers[down + first]
            ranges[r, 2] = shift + plan.row_windows[w, 1]
    return positive, negative


@njit(**OPTIONS)
def step_layer(plan, state, layer, source_layer, writes, sample, parity, weight, current, frame, ranges):
    """One step of one layer of one sample.

    Args:
        source_layer: whose spikes it takes, or -1 for none; writes: spikes go to ``State.dense``, not to lists.
        parity: which half of the lists this step writes.
        weight: of this step's spikes in the traces.
        current: values from outside; frame: where those of this sample begin, or -1 for none.
        ranges: int64 ``(windows, 3)``, scratch of :func:`collect`.
    """
    L = plan.layers[layer]
    height, width, padded = L[HEIGHT], L[WIDTH], L[PADDED]
    units, waiting = sample * plan.units + L[UNITS], sample * plan.rows + L[ROWS]
    place = parity * plan.batch + sample
    lists, line = place * plan.spikes + L[SPIKES], width * L[CHANNELS]
    dense_units = plan.batch * L[UNITS] + sample * height * width * padded
    source = source_of(plan, max(source_layer, 0), layer, sample, parity)
    always = plan.leak != 1 or frame >= 0 or L[BIAS] >= 0 or writes  # what moves a potential without a spike
    fired_in_all, sent_in_all = 0, 0
    for y in range(height):
        begin = plan.row_begins[L[WINDOW_ROWS] + y]
        end = plan.row_begins[L[WINDOW_ROWS] + y + 1] if source_layer >= 0 else begin
        arriving = 0
        for w in range(begin, end):
            arriving += spikes_in_row(state, source, plan.row_windows[w, 0])
        up_pointers = place * plan.pointers + L[POINTERS] + 2 * (width + 1) * y
        down_pointers = up_pointers + width + 1
        front, back, beyond = 0, 0, np.uint64(0)  # spikes sent so far, of either sign, in this row
        first, last = lists + y * line, lists + (y + 1) * line - 1
        if always or arriving or state.waiting[waiting + y]:
            for x in range(width):
                state.pointers[up_pointers + x], state.pointers[down_pointers + x] = front, back
                positive, negative = 0, 0
                if arriving:
                    positive, negative = collect(plan, state, source, (begin, end), L[WINDOW_COLUMNS] + x, ranges)
                if not (always or positive or negative or state.waiting[waiting + y]):
                    continue
                pixel = (y * width + x) * padded
                if L[POOL]:
                    other = ranges.shape[0] - negative
                    pool(plan, state, units + pixel, plan.pool[layer], L[MASKED], ranges, 0, positive)
                    pool(plan, state, units + pixel, -plan.pool[layer], L[MASKED], ranges, other, ranges.shape[0])
                    positive, negative = 0, 0
                at = frame + pixel if frame >= 0 else -1
                dense = dense_units + pixel if writes else -1
                channel = 0
                while channel < padded:
                    unit = units + pixel + channel
                    if padded - channel >= 64:
                        step = 64
                        up, down, still, fired = update64(plan, state, unit, channel, L, positive, negative, ranges,
                                                          current, at, weight, dense)
                    elif padded - channel >= 32:
                        step = 32
                        up, down, still, fired = update32(plan, state, unit, channel, L, positive, negative, ranges,
                                                          current, at, weight, dense)
                    else:
                        step = 16
                        up, down, still, fired = update16(plan, state, unit, channel, L, positive, negative, ranges,
                                                          current, at, weight, dense)
                    fired_in_all, beyond = fired_in_all + fired, beyond | still
                    if not writes:
                        number = x * L[SPIKE_COLUMN] + channel * L[SPIKE_CHANNEL]
                        send(state.spikes, up, number, L[SPIKE_CHANNEL], first + front, 1)
                        send(state.spikes, down, number, L[SPIKE_CHANNEL], last - back, -1)
                    front, back, channel = front + count(up), back + count(down), channel + step
            state.waiting[waiting + y] = beyond != 0
        state.pointers[up_pointers + width], state.pointers[down_pointers + width] = front, back
        sent_in_all += front + back
    state.fired[sample * len(plan.layers) + layer] += fired_in_all
    state.sent[sample * len(plan.layers) + layer] += sent_in_all


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
