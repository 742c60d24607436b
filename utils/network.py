"""What a run asks of the network that a script builds, and how a file holds its weights."""
import argparse
import sysconfig
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from modules import SpikeStatistics
from utils import published
from utils.errors import UserError
from utils.finite import first_bad
from utils.provenance import versions

# What wrappers of modules put into the names of parameters: DataParallel and its kind, torch.compile, FSDP.
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


class Network(Protocol):
    """What the loop asks of the ``torch.nn.Module`` that a script builds."""

    num_classes: int  # number of logits
    num_neurons: int  # number of forward neurons
    classifier: nn.Module  # the readout

    def __call__(self, x: Tensor, statistics: SpikeStatistics | None = None, *, keys: Tensor | None = None) -> Tensor:
        """Logits ``(batch, num_classes)``; arguments as :class:`modules.FeedbackSNN` takes them."""

    def engine_on(self, device: torch.device) -> str:
        """Name of the engine that simulates on ``device``."""


def require_network(model: nn.Module) -> None:
    """Refuse, by TypeError, a model without a member of :class:`Network`."""
    if absent := [name for name in (*Network.__annotations__, "engine_on") if not hasattr(model, name)]:
        raise TypeError(f"build_model made a {type(model).__name__} without {' and '.join(absent)}, which a run asks "
                        "for: see utils.network.Network")


def network_state(model: nn.Module, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """What a file holds of a network: its weights, and what they are."""
    return {"state_dict": model.state_dict(), "arguments": {**vars(args), "manualSeed": seed}, "versions": versions(),
            "network": {"name": type(model).__name__, "num_classes": model.num_classes}}


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Context in which what a checkpoint holds, which may be anything, is a UserError where it cannot be used; but not
    what goes wrong in a network's own methods, which a researcher is editing."""
    try:
        yield
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError) as error:
        ours = [str(Path(__file__).parent), *map(sysconfig.get_path, ("stdlib", "purelib", "platlib"))]
        if not all(frame.f_code.co_filename.startswith((*ours, "<")) for frame, _ in traceback.walk_tb(
                error.__traceback__)):
            raise
        raise UserError(f"{path} does not hold the state of a run ({type(error).__name__}: "
                        f"{str(error).splitlines()[0]}): resume from another file") from error


def load_network(model: nn.Module, stored: Mapping[str, Any], path: str | Path, *,
                 new_readout: bool = False) -> Mapping[str, Any]:
    """Load the weights of a checkpoint, ours or a published one, into ``model``, whichever of the two was wrapped.

    With ``new_readout`` the readout stays as it is, whatever there is in the checkpoint. Returns the checkpoint in our
    form; a UserError says that the weights are of another network or number of classes, naming both, or not finite.
    """
    if published.recognise(stored):
        stored = published.convert(stored, model, path)
    own = model.state_dict()
    state, theirs = _fitting(stored["state_dict"], own), stored.get("network", {})
    name, classes = type(model).__name__, model.num_classes
    their_name, their_classes = theirs.get("name", name), theirs.get("num_classes", classes)
    if new_readout:
        their_classes = classes
        state |= {key: value for key, value in own.items() if _unwrapped(key).startswith("classifier.")}
    if (their_name, their_classes) != (name, classes):
        raise UserError(f"{path} holds a {their_name} with {their_classes} classes, but this run builds a {name} with "
                        f"{classes} classes: use the script and --dataset that it was trained with")
    for key in [*own, *state]:
        found, expected = (tuple(d[key].shape) if torch.is_tensor(d.get(key)) else None for d in (state, own))
        if found != expected:
            raise UserError(f"{path} does not fit the {name} of this run: {key} has shape {found} in the file and "
                            f"{expected} in the network; build the network that it was trained with")
    model.load_state_dict(state)
    if bad := first_bad(dict(model.named_parameters())):  # in the network's own format, which may hold less
        raise UserError(f"{path} holds numbers that are not finite in {bad}: resume from another file")
    return stored


def _fitting(state: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A stored state under the names of ours: without what wrappers, or a larger module, put into or before them."""
    if state.keys() == own.keys():
        return dict(state)
    names = {_unwrapped(name): name for name in own}
    state = {_unwrapped(name): value for name, value in state.items() if name != "n_averaged"}  # by AveragedModel
    first = next(iter(names), "")
    prefixes = {name.removesuffix(first) for name in state if name.endswith(first)}
    prefix = next((p for p in sorted(prefixes, key=len) if all(p + name in state for name in names)), "")
    state = {name.removeprefix(prefix): value for name, value in state.items()}
    return {names.get(name, name): value for name, value in state.items()}


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)
