"""The event-driven engine for CPUs: the work of both simulations follows the spikes.

It lays a circuit out as a ring of layers (:mod:`modules.engines.kernels`), forward or backward, and simulates it in
compiled loops, a few samples after another on each thread. A layer whose source spikes so often that the gathering of
rows would cost more than a product of whole tensors gets that product, decided from the spikes of the steps before.
"""
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from modules.circuit import Circuit
from modules.engines import dense
from modules.engines.interface import BackwardResult, ForwardResult, unable
from modules.engines.ring import Outcome, Ring, backward, forward
from modules.engines.routes import as_image, padded, supports
from modules.synapses import Shape, layout

try:
    from modules.engines import kernels
except ImportError:  # numba is not installed
    kernels = None

# Samples that a thread takes through a step together: they share the weights in its cache, and each costs room there.
CHUNK = 8
# Steps between two looks at which layers want a dense product. The first look is early, as a guess precedes it.
FIRST_SEGMENT, SEGMENT = 2, 8
# Nanoseconds of one thread on a Zen 4, fitted to single layers; only their ratios count. For each value
# of a gathered row of weights, by the bytes of all rows, as these fit in the second or third cache or in neither; for a
# multiplication in a product of whole tensors; and for what such a product costs besides, by unit of source and target.
GATHERED = ((2**20, 0.052), (2**24, 0.068), (float("inf"), 0.17))
MULTIPLIED, MOVED = 0.017, 2.0


@torch.no_grad()
def simulate_forward(circuit: Circuit, x: Tensor) -> ForwardResult:
    """The forward network, see :class:`modules.engines.Engine`."""
    return forward(circuit, x, simulate) if _runs(circuit, x) else dense.simulate_forward(circuit, x)


@torch.no_grad()
def simulate_backward(circuit: Circuit, gradient: Tensor, masks: list[Tensor]) -> BackwardResult:
    """The backward network, see :class:`modules.engines.Engine`."""
    if not _runs(circuit, gradient):
        return dense.simulate_backward(circuit, gradient, masks)
    return backward(circuit, gradient, masks, simulate)


def available() -> bool:
    """Whether this engine can run at all."""
    return kernels is not None


def _runs(circuit: Circuit, x: Tensor) -> bool:
    """Whether the events of this circuit can be simulated here; warns once for each reason why not."""
    strange = [c.synapse for c in circuit.connections[1:] if not supports(c)]
    if kernels is None:
        return unable("event", "numba is not installed")
    if x.device.type != "cpu":
        return unable("event", f"it is for CPUs, and the network is on '{x.device.type}'")
    if x.dtype not in (torch.float32, torch.float64):
        return unable("event", f"it computes in float32 or float64, not in {x.dtype}")
    return not strange or unable("event", f"it does not know synapses of type {type(strange[0]).__name__}")


def simulate(ring: Ring, currents: Iterable[Tensor], steps: int, *, like: Tensor, counts: bool) -> Outcome:
    """Simulate a ring.

    Args:
        currents: into the first layer, tensors ``(frames, batch, *shape)`` for successive steps, or one with a single
            frame for all.
        steps: their number; like: a tensor of the type to compute in; counts: count spikes besides the traces.
    """
    batch = len(ring.gates[0])
    plan = lay_out(ring, like)
    state = at_rest(plan, counts)
    weights = (ring.leak ** np.arange(steps - 1, -1, -1.0)).astype(state.potentials.dtype)
    sent = np.zeros(len(ring.shapes))
    products = chosen = frozenset()  # the layers that get a dense product, in the last step and in the next ones
    step = 0
    with Team(batch) as team:
        for current in currents:
            static = len(current) == 1 and step == 0 and steps > 1
            first, last = step, steps if static else step + len(current)
            while step < last:
                after = min(last, step + (SEGMENT if step else FIRST_SEGMENT))
                # What the last layer sent to the first is a step old, and still in the form that was chosen then.
                begin = step + (step > 0 and (0 in products) != (0 in chosen))
                parts = [(step, begin, chosen ^ {0})] if begin > step else []
                parts += [(t, t + 1, chosen) for t in range(begin, after)] if chosen else [(begin, after, chosen)]
                for t, t_after, products in parts:
                    own = current if static else current[t - first:t_after - first]
                    advance(ring, plan, state, team, (t, t_after), weights, own, products, chosen)
                total = state.sent.reshape(batch, len(ring.shapes)).sum(0)
                products, chosen = chosen, dense_layers(ring, (total - sent) / (after - step), batch)
                step, sent = after, total
    traces = _layers_of(ring, plan, state.traces)
    numbers = _layers_of(ring, plan, state.counts) if counts else traces
    fired = torch.from_numpy(state.fired.reshape(batch, len(ring.shapes)).sum(0)).double()
    return Outcome(traces=traces, counts=numbers, fired=fired)


class Team:
    """Threads that share the samples of a batch, some at a time; the calling thread is one of them.

    They live as long as one simulation, so that processes may fork and simulations may run side by side.
    """

    def __init__(self, batch: int) -> None:
        threads = torch.get_num_threads()
        size = max(1, -(-batch // (threads * -(-batch // (threads * CHUNK)) or 1)))  # as many chunks for each thread
        self.chunks = [(begin, min(begin + size, batch)) for begin in range(0, batch, size)]
        self.helpers = min(threads, len(self.chunks)) - 1
        self._pool = ThreadPoolExecutor(self.helpers) if self.helpers > 0 else None

    def __enter__(self) -> "Team":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def share(self, work: Callable[[tuple[int, int]], None]) -> None:
        """Call ``work`` for the first and the one after the last sample of every chunk."""
        chunks = iter(self.chunks)

        def take_turns() -> None:
            for chunk in chunks:
                work(chunk)

        others = [self._pool.submit(take_turns) for _ in range(self.helpers)]
        take_turns()
        for other in others:
            other.result()


def lay_out(ring: Ring, like: Tensor) -> "kernels.Plan":
    """The tables and arrays of a ring that its kernels read, in the type of ``like``."""
    k, batch = kernels, len(ring.gates[0])
    numbers = like.numpy().dtype.type
    images = [as_image(shape) for shape in ring.shapes]
    layers = np.zeros((len(images), k.COLUMNS), np.int64)
    layers[:, (k.CHANNELS, k.HEIGHT, k.WIDTH)] = images
    layers[:, k.PADDED] = [padded(channels) for channels, _, _ in images]
    area = layers[:, k.HEIGHT] * layers[:, k.WIDTH]
    sizes = {k.UNITS: area * layers[:, k.PADDED], k.ROWS: layers[:, k.HEIGHT], k.SPIKES: area * layers[:, k.CHANNELS],
             k.POINTERS: 2 * layers[:, k.HEIGHT] * (layers[:, k.WIDTH] + 1)}
    for column, own in sizes.items():
        layers[:, column] = own.cumsum() - own
    weights, biases, begins, windows, columns = [], [], [], [], []
    for layer, (route_, bias) in enumerate(zip(ring.routes, ring.biases)):
        source = (layer - 1) % len(images)
        L = layers[layer]
        L[k.SOURCE], L[k.BIAS] = -1, -1
        L[k.MASKED] = layer == 0 and ring.keep is not None
        if route_ is None:
            continue
        L[k.SOURCE], L[k.POOL] = source, route_.weight is None
        layers[source, (k.SPIKE_COLUMN, k.SPIKE_CHANNEL)] = route_.column_step, route_.row
        row_begins, row_windows = route_.row_windows
        L[k.WINDOW_ROWS], L[k.WINDOW_COLUMNS] = len(begins), len(columns)
        begins += [len(windows) + n for n in row_begins]
        windows += row_windows
        columns += route_.column_windows
        L[k.WEIGHTS] = sum(map(len, weights))
        weights.append(route_.weights())
        if bias is not None:
            L[k.BIAS] = sum(map(len, biases))
            biases.append(F.pad(bias, (0, int(L[k.PADDED]) - len(bias))))
    units = int(sizes[k.UNITS].sum())
    return k.Plan(
        layers=layers, weights=_joined(weights, like), bias=_joined(biases, like),
        row_begins=np.array(begins, np.int64), row_windows=np.array(windows, np.int64).reshape(-1, 2),
        column_windows=np.array(columns, np.int64).reshape(-1, 3),
        pool=np.array([0 if r is None else r.scale for r in ring.routes], numbers),
        gate=np.packbits(_units_of(ring, layers, ring.gates, units, np.uint8), bitorder="little"),
        keep=np.empty(0, numbers) if ring.keep is None else _units_of(ring, layers, [ring.keep], units, numbers),
        upper=numbers(ring.upper), lower=numbers(ring.lower), quantum=numbers(ring.quantum), leak=numbers(ring.leak),
        batch=batch, units=units, rows=int(sizes[k.ROWS].sum()), spikes=int(sizes[k.SPIKES].sum()),
        pointers=int(sizes[k.POINTERS].sum()))


def at_rest(plan: "kernels.Plan", counts: bool) -> "kernels.State":
    """Potentials of 0, and no spikes."""
    batch, layers, numbers = plan.batch, len(plan.layers), plan.weights.dtype
    return kernels.State(
        potentials=np.zeros(batch * plan.units, numbers), traces=np.zeros(batch * plan.units, numbers),
        counts=np.zeros(batch * plan.units if counts else 0, numbers),
        spikes=np.empty(2 * batch * plan.spikes, np.int32), pointers=np.zeros(2 * batch * plan.pointers, np.int32),
        dense=np.empty(batch * plan.units, numbers), waiting=np.zeros(batch * plan.rows, np.uint8),
        fired=np.zeros(batch * layers, np.int64), sent=np.zeros(batch * layers, np.int64))


def advance(ring: Ring, plan: "kernels.Plan", state: "kernels.State", team: Team, steps: tuple[int, int],
            weights: np.ndarray, current: Tensor, products: frozenset[int], next_products: frozenset[int]) -> None:
    """Advance all layers by ``steps``, first and one after the last; by a single one if there are ``products``.

    Args:
        current: into the first layer, ``(frames, batch, *shape)``, of these steps or one frame for all.
        products: the layers whose currents are products of whole tensors; next_products: in the step after.
    """
    last = len(ring.shapes) - 1
    writes = sum(1 << layer - 1 for layer in products if layer) + (0 in next_products) * (1 << last)
    scratch = 2 * max(1, int(np.diff(plan.row_begins, append=0).max(initial=0))) + 1
    starts = sorted({0, *products})
    for first, after in zip(starts, [*starts[1:], len(ring.shapes)]):
        dense_product = first in products
        if dense_product:
            arrived = ring.products[first](_spikes(ring, plan, state, first))
            own = current[0] + arrived if first == 0 else arrived
        outside = _flat(own[None] if dense_product else current) if dense_product or first == 0 else None
        frames = 0 if outside is None else len(current) if first == 0 else 1
        what = (first, after), steps, weights, outside, frames, dense_product, writes
        team.share(lambda samples, what=what:
                   kernels.simulate(plan, state, samples, *what, np.empty((scratch, 3), np.int64)))


def dense_layers(ring: Ring, sent: np.ndarray, batch: int) -> frozenset[int]:
    """The layers for which a dense product costs less than the gathering of rows.

    Args:
        sent: spikes in a step that each layer sends on.
    """
    chosen = set()
    for layer, route_ in enumerate(ring.routes):
        if route_ is None or route_.weight is None:
            continue
        source, target = (torch.Size(shape).numel() for shape in (route_.source, route_.target))
        products = route_.multiplications
        size = route_.weight.numel() * route_.weight.element_size()
        per_value = next(cost for limit, cost in GATHERED if size <= limit)
        gathered = sent[layer - 1] * products / source * per_value
        if gathered > batch * (products * MULTIPLIED + (source + target) * MOVED):
            chosen.add(layer)
    return frozenset(chosen)


def _spikes(ring: Ring, plan: "kernels.Plan", state: "kernels.State", target: int) -> Tensor:
    """The spikes that arrive at a layer, as a tensor of -1, 0 and 1, ``(batch, *shape of the source)``."""
    source = target - 1 if target else len(ring.shapes) - 1
    _, height, width = as_image(ring.shapes[source])
    L = plan.layers[source]
    begin, size = plan.batch * L[kernels.UNITS], plan.batch * height * width * L[kernels.PADDED]
    own = torch.from_numpy(state.dense[begin:begin + size]).view(plan.batch, height, width, -1)
    return _from_units(own, ring.shapes[source])


def _flat(current: Tensor) -> np.ndarray:
    """Currents ``(frames, batch, *shape)`` as kernels read them: pixel by pixel, channels padded."""
    return _to_units(current.flatten(0, 1)).reshape(-1).numpy()


def _to_units(tensor: Tensor) -> Tensor:
    """``(n, *shape)`` as contiguous ``(n, height, width, padded channels)``; a view where it is laid out so already."""
    image = tensor.movedim(1, -1) if tensor.ndim == 4 else tensor[:, None, None]
    return F.pad(image, (0, padded(image.shape[-1]) - image.shape[-1])).contiguous()


def _from_units(units: Tensor, shape: Shape) -> Tensor:
    """The reverse of :func:`_to_units`, in the memory layout of simulations."""
    image = units[..., :shape[0]].movedim(-1, 1).reshape(-1, *shape)
    return image.contiguous(memory_format=layout(image))


def _layers_of(ring: Ring, plan: "kernels.Plan", array: np.ndarray) -> list[Tensor]:
    """A tensor ``(batch, *shape)`` for each layer from an array of units."""
    rows, found = torch.from_numpy(array).view(plan.batch, plan.units), []
    for L, shape in zip(plan.layers, ring.shapes):
        size = L[kernels.HEIGHT] * L[kernels.WIDTH] * L[kernels.PADDED]
        own = rows[:, L[kernels.UNITS]:L[kernels.UNITS] + size]
        found.append(_from_units(own.unflatten(1, tuple(L[[kernels.HEIGHT, kernels.WIDTH, kernels.PADDED]])), shape))
    return found


def _units_of(ring: Ring, layers: np.ndarray, tensors: list[Tensor], units: int, dtype: type) -> np.ndarray:
    """The reverse of :func:`_layers_of`, flat, for the first layers of a ring; the rest is not initialised."""
    array = np.empty((len(tensors[0]), units), dtype)
    for L, tensor in zip(layers, tensors):
        own = _to_units(tensor).flatten(1)
        array[:, L[kernels.UNITS]:L[kernels.UNITS] + own.shape[1]] = own.numpy()
    return array.reshape(-1)


def _joined(tensors: list[Tensor], like: Tensor) -> np.ndarray:
    """Tensors behind one another."""
    return torch.cat([like.new_empty(0), *tensors]).numpy()
