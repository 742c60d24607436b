"""What reaches a target pixel in a step: lists of spikes, and the sum of the rows of weights that they name.

Spikes of an image row lie behind one another, from left to right, as numbers of weight rows (see
:mod:`modules.engines.routes`) with a last bit for the sign. For each column it is known how many came before it, so
what a row of a window adds to a target pixel is one range of one list, whatever kernel, stride or direction.
"""
from typing import NamedTuple

import numpy as np

from modules.engines.event.compiled import jit
from modules.engines.event.lanes import at, load, store
from modules.engines.event.layout import ROOM


class Source(NamedTuple):
    """The spikes of a layer in a step: where its lists and pointers begin, and how they go on."""

    spikes: int  # the first row's list
    room: int  # from a row's list to the next row's
    pointers: int  # how many spikes of the first row came before its first column, and so on to the end of the row
    stride: int  # from one pointer of a row to the next
    width: int  # of the image


@jit(inline=True)
def pointer(source, row, column):
    """Where it stands how many spikes of a row came before a column."""
    return source.pointers + (row * (source.width + 1) + column) * source.stride


@jit(inline=True)
def collect(plan, spikes, pointers, source, windows, column, rows, place):
    """List the spikes that reach a pixel at ``rows[place]`` and on, and return where the list ends; ``windows``: first
    and one after the last of ``Plan.row_windows``; ``column``: the one of ``Plan.column_windows``."""
    for w in range(windows[0], windows[1]):
        window = plan.row_windows[w]
        if not at(pointers, pointer(source, window.row, source.width)):
            continue  # where a row is silent, other pointers may be those of an earlier step
        begin = np.intp(at(pointers, pointer(source, window.row, column.first)))
        end = np.intp(at(pointers, pointer(source, window.row, column.after)))
        list_, shift = source.spikes + window.row * source.room, np.int32(2 * (column.shift + window.shift))
        # Whole vectors are written: what they hold beyond the end is overwritten or ignored later.
        store(rows, place, load(spikes, list_ + begin, ROOM) + shift)
        for i in range(begin + ROOM, end, ROOM):
            store(rows, place + i - begin, load(spikes, list_ + i, ROOM) + shift)
        place += end - begin
    return place


def adder(width):
    """A function that adds what the spikes ``rows[begin:end]`` bring to a block of ``width`` channels of a pixel."""
    @jit(inline=True)
    def add_rows(plan, total, weights, rows, begin, end):
        """``weights``: where those of the block begin."""
        for i in range(begin, end):
            spike = np.intp(at(rows, i))
            row = load(plan.weights, weights + (spike >> 1) * width, width)
            if plan.lower > -np.inf:
                row = row * at(plan.signs, spike & 1)
            total = total + row
        return total

    return add_rows
