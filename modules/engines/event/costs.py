"""What a step of the event engine costs, and how to go on from there: by measured costs, not by a fixed rule."""
import numpy as np
import torch

from modules.engines.ring import Ring
from modules.engines.routes import Route

# Nanoseconds of one thread on a Zen 4, fitted to single layers; only their ratios count. For each value of a gathered
# row of weights, by the bytes of all rows, as these fit in the third cache or not; for a multiplication in a product of
# whole tensors; and for what such a product costs besides, by unit of source and target, where it is of a single step.
GATHERED = ((2**24, 0.05), (float("inf"), 0.07))
MULTIPLIED, MOVED = 0.017, 2.0
# Samples that take a step together where they share something: rows of weights in the second cache, or a product.
TOGETHER = 16


def break_even(route: Route, moved: float = MOVED) -> float:
    """Spikes in a step of one sample from which on a dense product costs less than the gathering of rows."""
    if route.weight is None or not route.multiplications:
        return float("inf")
    size = route.weight.numel() * route.weight.element_size()
    units = torch.Size(route.source).numel() + torch.Size(route.target).numel()
    value = next(cost for limit, cost in GATHERED if size <= limit)
    return (route.multiplications * MULTIPLIED + units * moved) / (reached(route) * value)


def reached(route: Route) -> float:
    """Units that a spike reaches, on average: values of weights that it takes to gather."""
    return route.multiplications / torch.Size(route.source).numel()


def dense_layers(ring: Ring, sent: np.ndarray) -> frozenset[int]:
    """The layers for which a dense product costs less than the gathering of rows, if each sends on ``sent`` spikes in a
    step of one sample."""
    return frozenset(layer for layer, route in enumerate(ring.routes)
                     if route is not None and sent[layer - 1] > break_even(route))


def companions(ring: Ring, sent: np.ndarray) -> int:
    """Number of samples that should take a step together, layer by layer, as they use the same weights; one alone for
    all steps keeps its potentials in a cache, which is better where it uses few weights."""
    weighted = [(sent[layer - 1], route) for layer, route in enumerate(ring.routes) if route and route.rows]
    values = sum(spikes * reached(route) for spikes, route in weighted)
    return TOGETHER if values > sum(route.weight.numel() for _, route in weighted) else 1
