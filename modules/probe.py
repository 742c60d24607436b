"""What a simulation and its gradient take for granted of synapses and neurons, tried on a sample or two.

Both take a current for ``W s + b`` with everything that it depends on known. A current that is something else would be
simulated, and then differentiated as another one. A user's own synapse is tried at every call; of the library's, which
researchers edit too, a small example once a process. Rates and masks count the spikes of a neuron, so these have to be
0 or 1, and all that a neuron remembers has to be in the potential, which each layer has of its own.
"""
import copy
import functools
import math
import pickle
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from modules import synapses
from modules.circuit import Connection
from modules.neurons import LIBRARY, LIF, TernaryCouple
from modules.notices import warn_once
from modules.synapses import Shape, layout

METHODS = ("current", "transpose", "parameter_gradients")
# Of the library's synapses, small ones: arguments, and the shape of their input.
EXAMPLES = {synapses.Conv2d: (2, 3, 3, (2, 5, 4)), synapses.ConvTranspose2d: (2, 3, 3, (2, 5, 4)),
            synapses.AvgPool2d: (2, (2, 5, 4)), synapses.Linear: (8, 3, (2, 2, 2))}


def check(connection: Connection, like: Tensor) -> None:
    """Try a connection; of the library's own synapses a small example once, as their file may have been edited.

    Raises:
        ValueError: the current has another shape than the synapse says, is not linear, changes from call to call,
            depends on parameters that are not the synapse's, is not finite, or is not what its transpose transposes or
            its ``parameter_gradients`` are of.
    """
    synapse = connection.synapse
    kind = parametrize.type_before_parametrizations(synapse)
    if kind not in EXAMPLES or vars(synapse).keys() & set(METHODS):
        _try(connection, like)
    elif not torch.compiler.is_compiling():  # which would trace all of it, with a warning
        _once(kind, *(getattr(kind, name) for name in METHODS))


def check_neuron(neuron: LIF | TernaryCouple, shape: Shape, like: Tensor) -> None:
    """Try two steps of a neuron, or couple, on layers of ``shape``, and warn of a state of its own.

    The steps are of a copy, if one can be made, and draw from no random generator of PyTorch's.

    Raises:
        ValueError: a step does not update the potential in place, or does not overwrite all spikes with 0 or 1, those
            of a couple with -1, 0 or 1; a couple returns another number than that of the units that fired; a neuron of
            the library changes its current; or there are parameters, which would get no gradient.
    """
    kind, couple = type(neuron), isinstance(neuron, TernaryCouple)
    library = kind in LIBRARY
    if like.is_meta or library and torch.compiler.is_compiling():  # which would trace and compile all of it
        return
    if any(torch.is_tensor(value) and value.requires_grad for value in vars(neuron).values()):
        raise ValueError(f"a {kind.__name__} holds parameters, which would get no gradient: neurons are not trained")
    try:
        own = copy.deepcopy(neuron)
    except Exception:  # of a lock, a file or whatever it may hold
        own = neuron
    values, states = (*((-1,) if couple else ()), 0, 1), []
    samples = 1 + 64 // max(1, math.prod(shape))
    current = torch.linspace(-4, 4, samples * math.prod(shape)).view(samples, *shape) * neuron.v_threshold
    current = current.to(like).contiguous(memory_format=layout(current))
    potential = torch.zeros_like(current)
    with torch.no_grad(), torch.random.fork_rng(devices=[like.device] if like.is_cuda else []):
        for step in range(2):
            spikes, *scratch = (torch.full_like(potential, 0.5) for _ in range(1 + couple))  # as if left behind
            given = current.clone()
            fired = own.step_(potential, given, spikes, *scratch)
            states.append(_state(own))
            if step == 0 and potential.numel() and not potential.any():
                raise ValueError(f"a step of {kind.__name__} leaves the potential as it was: update it in place, as "
                                 "potential += current does")
            if not torch.isin(spikes, spikes.new_tensor(values)).all():
                raise ValueError(f"a step of {kind.__name__} does not overwrite all spikes, in place, by one of "
                                 f"{', '.join(map(str, values))}, which rates and gradients count")
            if couple and fired != spikes.count_nonzero():
                raise ValueError(f"a step of {kind.__name__} returns that {fired} units fired, and "
                                 f"{spikes.count_nonzero()} did")
            if library and not torch.equal(given, current):
                raise ValueError(f"a step of {kind.__name__} changes the current that it is given, which may be that "
                                 "of the next step too: derive a neuron of your own, which gets a copy")
    if states[0] != states[1]:
        warn_once(kind.__name__, "state", sentence=f"a {kind.__name__} changes at every step: all layers and batches "
                  "share one, so only what is in the potential is each unit's own and begins anew")


def _state(neuron: LIF | TernaryCouple) -> bytes | None:
    """What a neuron holds, to compare; None where that cannot be told."""
    try:
        return pickle.dumps(vars(neuron))
    except Exception:  # as copying
        return None


@functools.cache
def example(kind: type[synapses.Synapse]) -> Connection:
    """A small connection of one of the library's synapses, in float64."""
    *sizes, shape = EXAMPLES[kind]
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        synapse = kind(*sizes).double()
    weight, bias, *_ = synapse.read()
    return Connection(name=f"an example of {kind.__name__}", synapse=synapse, weight=weight, bias=bias,
                      input_shape=shape, output_shape=synapse.output_shape(shape))


@functools.cache
def _once(kind: type[synapses.Synapse], *_: Callable) -> None:
    """Try an example, and again if a method has been replaced since."""
    with torch.inference_mode(False), torch.enable_grad():
        _try(example(kind), torch.zeros((), dtype=torch.float64))


def _try(connection: Connection, like: Tensor) -> None:
    """Try one connection, as it is; errors as of :func:`check`."""
    synapse = connection.synapse
    kind = parametrize.type_before_parametrizations(synapse)
    what, shapes = f"the synapse '{connection.name}' ({kind.__name__})", connection.output_shape
    weight, bias = (t if t is None else t.detach() for t in (connection.weight, connection.bias))

    def current(spikes: Tensor) -> Tensor:
        return synapse.current(spikes, weight, bias, shapes)

    generator = torch.Generator().manual_seed(0)
    a, b, r = (torch.rand(2, *shape, generator=generator).to(like)
               for shape in (connection.input_shape, connection.input_shape, shapes))
    if connection.name == "input":  # which takes not only spikes
        a, b = 8 * a - 4, 8 * b - 4
    with torch.enable_grad():
        traced = current(a)
    if traced.shape != r.shape:
        raise ValueError(f"{what} says that its current has the shape {tuple(shapes)}, and it has "
                         f"{tuple(traced.shape[1:])}")
    known = {id(t) for t in connection.further}
    if any(id(leaf) not in known for leaf in _leaves(traced)):
        raise ValueError(f"the current of {what} depends on parameters that would get no gradient through it: use the "
                         "weight and bias that it is handed, and register the module of any other parameter as its own")
    with torch.no_grad():
        first, again, other, none, both = traced.detach(), *map(current, (a, b, torch.zeros_like(a), a + b))
        back = connection.transpose(r)
    eps = torch.finfo(like.dtype).eps
    size = min(1e3 * eps, 1e-2 + 4 * eps) * sum(t.abs().amax() for t in (first, other, none, both)).clamp(min=1e-30)
    if not torch.isfinite(size):
        raise ValueError(f"the current of {what} is not finite for spikes of 1, which a threshold would hide")
    if (first - again).abs().amax() > 0:
        raise ValueError(f"the current of {what} is another one when it is asked again: it must not hold a state, nor "
                         "draw random numbers (for dropout there is dropout=)")
    if (both + none - first - other).abs().amax() > size:
        raise ValueError(f"the current of {what} is no linear function of spikes and a constant, which its gradient "
                         "takes it for: leave what is not linear to the neuron")
    there, here = ((first - none) * r).sum(), (a * back).sum()
    if (there - here).abs() > size * r.numel():
        raise ValueError(f"the transpose of {what} is not that of its current: leave it out, and it follows from that")
    wanted = weight is not None, bias is not None
    own, right = connection.method("parameter_gradients"), synapses.Synapse.parameter_gradients
    if torch.is_grad_enabled() and getattr(own, "__func__", getattr(own, "func", None)) is not right:
        found, right = own(a, weight, bias, r, wanted), right(synapse, a, weight, bias, r, wanted)
        if any((x - y).abs().amax() > 1e-2 * y.abs().amax() for x, y in zip(found, right) if y is not None):
            raise ValueError(f"the parameter_gradients of {what} are not those of its current: leave them out, and "
                             "they follow from that")


def _leaves(tensor: Tensor) -> list[Tensor]:
    """The parameters that a tensor was computed from, as autograd knows them."""
    found, seen, left = [], set(), [tensor.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found += [node.variable] if hasattr(node, "variable") else []
        left += [following for following, _ in node.next_functions]
    return found
