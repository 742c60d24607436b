"""The event-driven engine for CPUs: the work of both simulations follows the spikes.

It lays a circuit out as a ring of layers (:mod:`modules.engines.event.kernels`), forward or backward, and simulates it
in compiled loops, a few samples after another on each thread. A layer whose source spikes so often that the gathering
of rows would cost more than a product of whole tensors gets that product, decided from the spikes of the steps before.
"""
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from modules.engines.event import costs
from modules.engines.ring import Outcome, Ring, RingEngine
from modules.engines.routes import WIDTHS, as_image, blocks, padded
from modules.synapses import Shape, layout

# Turns of each thread between two meetings: enough for one to take over what another has no time for.
TURNS = 2
# Least and most steps between two looks at which layers want a dense product: the first ones follow a guess.
FIRST_SEGMENT, SEGMENT = 1, 32


class EventEngine(RingEngine):
    """The engine for CPUs."""

    name = "event"

    def obstacle(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """See :class:`modules.engines.ring.RingEngine`."""
        if device.type != "cpu":
            return f"it is for CPUs, and the network is on '{device.type}'"
        if dtype not in (torch.float32, torch.float64):
            return f"it computes in float32 or float64, not in {dtype}"
        return missing()

    def simulate(self, ring: Ring, currents: Iterable[Tensor], steps: int, *, like: Tensor, counts: bool) -> Outcome:
        """See :class:`modules.engines.ring.RingEngine`."""
        batch = len(ring.gates[0])
        plan = lay_out(ring, like)
        state = at_rest(plan, steps, counts)
        weights = (ring.leak ** np.arange(steps - 1, -1, -1.0)).astype(state.traces.dtype)
        products, together = frozenset(), 1  # the layers that get a dense product; samples that take a step together
        step, sent = 0, np.zeros(len(ring.shapes))
        with Team(lambda: scratch(ring, plan, min(batch, costs.TOGETHER))) as team:
            for current in currents:
                static = len(current) == 1 and step == 0 and steps > 1
                pixels = _pixels(current.flatten(0, 1), plan.layers[0]).unflatten(0, current.shape[:2])
                first, last = step, steps if static else step + len(current)
                while step < last:
                    after = min(last, step + min(max(step, FIRST_SEGMENT), SEGMENT))
                    own = pixels if static else pixels[step - first:after - first]
                    work = partial(advance, ring, plan, state, steps=range(step, after), weights=weights, current=own,
                                   products=products, together=together)
                    team.share(work, chunks(batch, costs.TOGETHER if products else together))
                    total = state.sent.reshape(batch, len(ring.shapes)).sum(0)
                    mean = (total - sent) / (after - step) / max(batch, 1)
                    products, together = costs.dense_layers(ring, mean), costs.companions(ring, mean)
                    step, sent = after, total
        traces = _layers_of(ring, plan, state.traces, like)
        numbers = _layers_of(ring, plan, state.counts, like) if counts else traces
        fired = torch.from_numpy(state.fired.reshape(batch, len(ring.shapes)).sum(0)).double()
        return Outcome(traces=traces, counts=numbers, fired=fired)


@functools.cache
def missing() -> str | None:
    """Why the compiled loops cannot be had, in words, or None. They are compiled at first use, and Numba is imported
    then."""
    global kernels
    try:
        from modules.engines.event import kernels
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    except Exception as error:  # whatever an installation that does not fit stumbles over
        return f"Numba is installed but cannot be used ({type(error).__name__}: {error})"
    return None


class Team:
    """Threads that share the samples of a batch, some at a time; the calling thread is one of them.

    They live as long as one simulation, so that processes may fork and simulations may run side by side.

    Args:
        tools: makes what each thread needs.
    """

    def __init__(self, tools: Callable[[], Any]) -> None:
        self._tools = [tools() for _ in range(torch.get_num_threads())]
        self._pool = ThreadPoolExecutor(len(self._tools))

    def __enter__(self) -> "Team":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def share(self, work: Callable[[Any, range], None], chunks: list[range]) -> None:
        """Call ``work`` with a thread's tools for every chunk of samples."""
        left = iter(chunks)

        def take_turns(tools: Any) -> None:
            for chunk in left:
                work(tools, chunk)

        with one_thread_each():
            others = [self._pool.submit(take_turns, tools) for tools in self._tools[1:len(chunks)]]
            take_turns(self._tools[0])
            for other in others:
                other.result()


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Let PyTorch use one thread for each of the team: more would keep processors busy with waiting for work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of this thread, and of those that call PyTorch for the first time
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def chunks(batch: int, together: int) -> list[range]:
    """The samples of a batch, in chunks: some for each thread, of at least so many samples if all threads get one."""
    share = -(-batch // torch.get_num_threads())
    size = max(-(-share // TURNS), min(together, share), 1)
    return [range(begin, min(begin + size, batch)) for begin in range(0, batch, size)]


def lay_out(ring: Ring, like: Tensor) -> "kernels.Plan":
    """The tables and arrays of a ring that its kernels read, in the type of ``like``."""
    k, batch = kernels, len(ring.gates[0])
    numbers = like.numpy().dtype.type
    images = [as_image(shape) for shape in ring.shapes]
    layers = np.zeros((len(images), k.COLUMNS), np.int64)
    layers[:, (k.CHANNELS, k.HEIGHT, k.WIDTH)] = images
    layers[:, k.BLOCK] = [WIDTHS[-1] if route is None else route.block for route in ring.routes]
    layers[:, k.PADDED] = [padded(*pair) for pair in layers[:, (k.CHANNELS, k.BLOCK)].tolist()]
    layers[:, k.WEIGHT_ROWS] = [0 if route is None else route.rows for route in ring.routes]
    area = layers[:, k.HEIGHT] * layers[:, k.WIDTH]
    sizes = {k.UNITS: area * layers[:, k.PADDED], k.SPIKES: area * layers[:, k.CHANNELS],
             k.POINTERS: 2 * layers[:, k.HEIGHT] * (layers[:, k.WIDTH] + 1),
             k.WORDS: area * -(-layers[:, k.PADDED] // k.WORD),
             k.WEIGHTS: layers[:, k.WEIGHT_ROWS] * layers[:, k.PADDED]}
    for column, own in sizes.items():
        layers[:, column] = own.cumsum() - own
    total = {column: int(own.sum()) for column, own in sizes.items()}
    weights = like.new_empty(total[k.WEIGHTS])
    biases, begins, windows, columns = [], [], [], []
    for layer, (route, bias) in enumerate(zip(ring.routes, ring.biases)):
        L = layers[layer]
        L[k.SOURCE], L[k.BIAS] = -1, -1
        L[k.MASKED] = layer == 0 and ring.keep is not None
        if route is None:
            continue
        L[k.SOURCE] = (layer - 1) % len(images)
        L[k.POOL] = route.weight is None
        layers[layer - 1, k.SPIKE_COLUMN] = route.column_step
        row_begins, row_windows = route.row_windows
        L[k.WINDOW_ROWS], L[k.WINDOW_COLUMNS] = len(begins), len(columns)
        begins += [len(windows) + n for n in row_begins]
        windows += row_windows
        columns += route.column_windows
        if route.weight is not None:
            route.write_weights(weights[L[k.WEIGHTS]:][:sizes[k.WEIGHTS][layer]])
        if bias is not None:
            L[k.BIAS] = sum(map(len, biases))
            biases.append(F.pad(bias, (0, int(L[k.PADDED]) - len(bias))))
    return k.Plan(
        layers=layers, weights=weights.numpy(), bias=torch.cat([like.new_empty(0), *biases]).numpy(),
        row_begins=np.array(begins, np.int64), row_windows=np.array(windows, np.int64).reshape(-1, 2),
        column_windows=np.array(columns, np.int64).reshape(-1, 3),
        pool=np.array([0 if r is None else r.scale for r in ring.routes], numbers),
        gate=np.concatenate([_bits(gate, L) for gate, L in zip(ring.gates, layers)], axis=1).reshape(-1),
        keep=np.empty(0, numbers) if ring.keep is None else _kept(ring.keep, layers[0], total[k.UNITS], numbers),
        upper=numbers(ring.upper), lower=numbers(ring.lower), quantum=numbers(ring.quantum), leak=numbers(ring.leak),
        batch=batch, units=total[k.UNITS], spikes=total[k.SPIKES], pointers=total[k.POINTERS],
        words=total[k.WORDS])


def at_rest(plan: "kernels.Plan", steps: int, counts: bool) -> "kernels.State":
    """Potentials of 0, and no spikes."""
    units, layers, numbers = plan.batch * plan.units, len(plan.layers), plan.weights.dtype
    whole = np.int16 if steps < 2**15 else np.int32
    return kernels.State(
        potentials=np.zeros(units, numbers), traces=np.zeros(units, whole if plan.leak == 1 else numbers),
        counts=np.zeros(units if counts else 0, whole),
        spikes=np.empty(2 * plan.batch * plan.spikes + kernels.ROOM, np.int32),
        pointers=np.zeros(2 * plan.batch * plan.pointers, np.int32),
        dense=np.empty(units, numbers), waiting=np.zeros(plan.batch * layers, np.uint8),
        fired=np.zeros(plan.batch * layers, np.int64), sent=np.zeros(plan.batch * layers, np.int64))


def scratch(ring: Ring, plan: "kernels.Plan", samples: int) -> "kernels.Scratch":
    """Room for one step of any layer of some samples; memory that no spike needs is never touched."""
    areas = plan.layers[:, kernels.HEIGHT] * plan.layers[:, kernels.WIDTH]
    reach = [0 if r is None else math.prod(r.kernel) * r.source[0] for r in ring.routes]
    bits = plan.words * kernels.WORD // 8
    return kernels.Scratch(
        visits=np.empty(samples * 4 * areas.max(initial=0), np.int64), begins=np.empty(samples + 1, np.int64),
        rows=np.empty(samples * (areas * reach).max(initial=0) + kernels.ROOM, np.int32),
        up=np.zeros(samples * bits, np.uint8), down=np.zeros(samples * bits, np.uint8))


def advance(ring: Ring, plan: "kernels.Plan", state: "kernels.State", tools: "kernels.Scratch", samples: range, *,
            steps: range, weights: np.ndarray, current: Tensor, products: frozenset[int], together: int) -> None:
    """Advance all layers of some samples by some steps.

    Args:
        weights: of all steps in the traces.
        current: into the first layer, ``(frames, batch, height, width, padded channels)``, of these steps or one frame
            for all.
        products: the layers whose currents are products of whole tensors.
        together: number of samples that take a step together.
    """
    def run(steps: range, layers: tuple[int, int], outside: Tensor, held: range, product: bool = False) -> None:
        kernels.simulate(plan, state, tools, (samples.start, samples.stop), together, layers, (steps.start, steps.stop),
                         weights, outside.view(-1).numpy(), len(outside), (held.start, len(held)), product, writes)

    slice_, none = slice(samples.start, samples.stop), current.new_empty(0)
    starts = sorted({0, *products})
    writes = sum(1 << layer - 1 for layer in products if layer)
    if not products:
        return run(steps, (0, len(ring.shapes)), current, range(current.shape[1]))
    for step in steps:
        for first, after in zip(starts, [*starts[1:], len(ring.shapes)]):
            frame = step - steps.start if len(current) > 1 else 0
            outside = current[frame:frame + 1, slice_] if first == 0 else none
            if first in products:
                product = ring.products[first](_spikes(ring, plan, state, samples, first, step), slice_)
                arriving = _pixels(product, plan.layers[first])[None]
                outside = outside + arriving if first == 0 else arriving
            run(range(step, step + 1), (first, after), outside, samples, first in products)


def _spikes(ring: Ring, plan: "kernels.Plan", state: "kernels.State", samples: range, target: int,
            step: int) -> Tensor:
    """The spikes that arrive at a layer, as a tensor of -1, 0 and 1, ``(samples, *shape of the source)``."""
    source = (target - 1) % len(ring.shapes)
    L = plan.layers[source]
    image = L[[kernels.HEIGHT, kernels.WIDTH, kernels.PADDED]].tolist()
    if target:
        begin = plan.batch * int(L[kernels.UNITS]) + samples.start * math.prod(image)
        pixels = torch.from_numpy(state.dense)[begin:begin + len(samples) * math.prod(image)].view(-1, *image)
    else:  # they are a step old, from when it was not known that they should be written so
        pixels = torch.zeros((len(samples), *image), dtype=torch.from_numpy(state.dense).dtype)
        kernels.spread(plan, state, source, (samples.start, samples.stop), step - 1, pixels.view(-1).numpy())
    return _as_layer(pixels, ring.shapes[source])


def _pixels(tensor: Tensor, L: np.ndarray) -> Tensor:
    """``(n, *shape)`` of the layer ``L`` as contiguous ``(n, height, width, padded channels)``, a view if it can be."""
    image = tensor.movedim(1, -1) if tensor.ndim == 4 else tensor[:, None, None]
    missing = int(L[kernels.PADDED]) - image.shape[-1]
    return (F.pad(image, (0, missing)) if missing else image).contiguous()  # padding by nothing would copy


def _as_layer(pixels: Tensor, shape: Shape) -> Tensor:
    """The reverse of :func:`_pixels`, in the memory layout of simulations."""
    image = pixels[..., :shape[0]].movedim(-1, 1).reshape(-1, *shape)
    return image.contiguous(memory_format=layout(image))


def _bits(gate: Tensor, L: np.ndarray) -> np.ndarray:
    """A gate ``(batch, *shape)`` as bytes ``(batch, n)``, a bit for each unit, pixel by pixel in whole words."""
    pixels = _pixels(gate, L)
    words = F.pad(pixels, (0, -pixels.shape[-1] % kernels.WORD))
    return np.packbits(words.flatten(1).numpy(), axis=1, bitorder="little")


def _layers_of(ring: Ring, plan: "kernels.Plan", array: np.ndarray, like: Tensor) -> list[Tensor]:
    """A tensor ``(batch, *shape)`` of the type of ``like`` for each layer from an array of units."""
    units, found = torch.from_numpy(array).view(plan.batch, plan.units), []
    for L, shape in zip(plan.layers, ring.shapes):
        size, pixels = L[[kernels.HEIGHT, kernels.WIDTH]].tolist(), []
        for channel, width in blocks(*L[[kernels.PADDED, kernels.BLOCK]].tolist()):
            begin = int(L[kernels.UNITS]) + channel * math.prod(size)
            pixels.append(units[:, begin:begin + width * math.prod(size)].unflatten(1, (*size, width)))
        found.append(_as_layer(torch.cat(pixels, -1).to(like.dtype), shape))
    return found


def _kept(keep: Tensor, L: np.ndarray, units: int, dtype: type) -> np.ndarray:
    """``Ring.keep`` as an array of units, of which those behind the first layer, ``L``, are not set."""
    pixels = _pixels(keep, L).flatten(1, 2)
    parts = [pixels[..., channel:channel + width].flatten(1)
             for channel, width in blocks(*L[[kernels.PADDED, kernels.BLOCK]].tolist())]
    array = np.empty((len(keep), units), dtype)
    array[:, :pixels[0].numel()] = torch.cat(parts, 1).numpy()
    return array.reshape(-1)

