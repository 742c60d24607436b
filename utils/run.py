"""A run: what it is made of and how far it has come, written to a checkpoint and read from it side by side."""
import argparse
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from modules import SpikeStatistics
from utils import checkpoint, metrics, published
from utils.checkpoint import Stored
from utils.distributed import World
from utils.errors import UserError
from utils.finite import Watch, first_bad
from utils.logs import read_log, write_log
from utils.meters import Meters
from utils.metrics import PendingRows
from utils.progress import say
from utils.provenance import versions
from utils.signals import Signals


class Network(Protocol):
    """What the loop asks of the ``torch.nn.Module`` that a script builds.

    Attributes:
        num_classes: number of logits; num_neurons: number of forward neurons.
        classifier: the readout.
    """

    num_classes: int
    num_neurons: int
    classifier: nn.Module

    def __call__(self, x: Tensor, statistics: SpikeStatistics | None = None, *, keys: Tensor | None = None) -> Tensor:
        """Logits ``(batch, num_classes)``; arguments as :class:`modules.FeedbackSNN` takes them."""

    def engine_on(self, device: torch.device) -> str:
        """Name of the engine that simulates on ``device``."""


@dataclass
class RunState:
    """How far a run has come.

    Attributes:
        epoch: number of finished epochs; batch: number of iterations done in the running one.
        iteration: number of training iterations since the start of the run.
        evaluated: whether the network was evaluated since the last iteration.
        best_accuracy: top-1 of the best evaluation, in percent.
        meters: sums over the running epoch; window: sums since the last row of ``metrics.jsonl``.
        history: one row of ``log.txt`` per finished epoch.
        warned: kinds of warning that were given.
    """

    epoch: int = 0
    batch: int = 0
    iteration: int = 0
    evaluated: bool = True
    best_accuracy: float = -1.0  # below any, so that the first evaluation is the best so far
    meters: Meters = field(default_factory=Meters)
    window: Meters = field(default_factory=Meters)
    history: list[list[float]] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """Everything, in plain types."""
        return {"epoch": self.epoch, "batch": self.batch, "iteration": self.iteration, "evaluated": self.evaluated,
                "best_acc": self.best_accuracy, "meters": self.meters.state_dict(),
                "window": self.window.state_dict(), "history": self.history, "warned": self.warned}

    @classmethod
    def from_state_dict(cls, stored: Mapping[str, Any], device: torch.device) -> "RunState":
        """The state that :meth:`state_dict` returned; an epoch alone, as in a published checkpoint, will do."""
        return cls(epoch=int(stored.get("epoch", 0)), batch=int(stored.get("batch", 0)),
                   iteration=int(stored.get("iteration", 0)), evaluated=bool(stored.get("evaluated", True)),
                   best_accuracy=float(stored.get("best_acc", -1)), meters=Meters(stored.get("meters"), device),
                   window=Meters(stored.get("window"), device), warned=list(stored.get("warned", [])),
                   history=[list(row) for row in stored.get("history", [])])


@dataclass
class Run:
    """A model, its data and its arguments, and how far training has come."""

    args: argparse.Namespace
    folder: Path  # where checkpoints and logs go
    seed: int
    device: torch.device
    model: nn.Module  # a Network; its gradients are this process's, see ``World.share``
    optimizer: torch.optim.Optimizer
    train_loader: DataLoader
    test_loader: DataLoader
    state: RunState = field(default_factory=RunState)
    signals: Signals = field(default_factory=Signals)
    world: World = field(default_factory=World)
    saved: bool = True  # whether the last attempt to write a checkpoint succeeded

    def __post_init__(self) -> None:
        self.watch, self.recorder = Watch(self.model), PendingRows(self.folder)

    @property
    def batch_size(self) -> int:
        """Number of samples in the coming batch, over all processes: the last one of an epoch may be smaller."""
        return min(self.args.train_batch, len(self.train_loader.dataset) - self.state.batch * self.args.train_batch)

    @property
    def trained(self) -> bool:
        """Whether all epochs, or the iterations that were asked for, are done."""
        limit = self.args.max_iters
        return self.state.epoch >= self.args.epochs or (limit is not None and self.state.iteration >= limit)

    def require_finite(self) -> None:
        """Stop a run whose numbers are no longer numbers (this waits for the device).

        Raises:
            UserError: as said; it names what, and the iteration.
        """
        bad = self.watch.first()
        if bad is not None:
            raise UserError(f"the {bad[1]} is not finite at iteration {bad[0]}: resume from the last checkpoint in "
                            f"{self.folder} with a smaller --lr or a longer --warmup")

    def save(self, *, best: bool = False, rows: list[list[float]] | None = None) -> None:
        """Write a checkpoint and, if given, the rows of the log. All processes of a job must call it.

        Raises:
            UserError: a number is not finite, so that the state is not worth a checkpoint.
        """
        self.require_finite()
        self.write_metrics()
        merged = {name: self.world.merged(meters).state_dict() for name, meters in
                  (("meters", self.state.meters), ("window", self.state.window))}
        if self.world.leads:
            self.write({**self.state_dict(), **merged}, best=best, rows=rows)

    def write(self, contents: Mapping[str, Any], *, best: bool = False, rows: list[list[float]] | None = None) -> None:
        """Write the files of a checkpoint.

        Where that fails, a warning is all: the files of before are still there, and the next save tries again.

        Raises:
            UserError: a weight or something of the optimizer is not finite; the files of before stay.
        """
        bad = first_bad({"weight": dict(self.model.named_parameters()), "optimizer": contents["optimizer"]["state"]})
        if bad:
            raise UserError(f"the {bad} is not finite after iteration {self.state.iteration}, which is not saved: "
                            f"resume from the last checkpoint in {self.folder} with a smaller --lr")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            checkpoint.save(self.folder, contents, best=best)
            if rows is not None:
                write_log(self.folder, rows)
            self.saved = True
        except OSError as error:
            self.saved = False
            say(f"WARNING: the checkpoint of iteration {self.state.iteration} could NOT be written to {self.folder} "
                f"({error.strerror or error}); training goes on, and the next save tries again")

    def write_metrics(self) -> None:
        """Append the rows of ``metrics.jsonl`` that wait; where that fails, a warning is all, and they wait on."""
        try:
            self.recorder.write(self.world.merged, leads=self.world.leads)
        except OSError as error:
            say(f"WARNING: rows could NOT be written to {self.folder / metrics.NAME} ({error.strerror or error}); "
                "training goes on, and the next write tries again")

    def fine_tune(self, found: Stored) -> None:
        """Begin with the network of a checkpoint, but for its readout.

        Raises:
            UserError: it is of another network.
        """
        load_network(self.model, found.contents, found.path, new_readout=True)

    def resume(self, found: Stored) -> None:
        """Go on from a checkpoint, ours or a published one.

        Raises:
            UserError: it is of another network, or holds something that is no state of a run.
        """
        path = found.path
        try:
            stored = load_network(self.model, found.contents, path)
            self.load_state_dict(stored)
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            raise UserError(f"{path} does not hold the state of a run ({type(error).__name__}: "
                             f"{str(error).splitlines()[0]}): resume from another file") from error

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds, with the sums of this process."""
        return {**network_state(self.model, self.args, self.seed), "optimizer": self.optimizer.state_dict(),
                **self.state.state_dict(), "random_state": random_state()}

    def load_state_dict(self, stored: Mapping[str, Any]) -> None:
        """Take over everything but the model, whatever is there; ``--start-epoch`` has the last word."""
        args, arguments, batches = self.args, stored.get("arguments", {}), len(self.train_loader)
        if stored.get("optimizer") and arguments.get("optimizer", args.optimizer) == args.optimizer:
            settings = [{**group, "params": None} for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(stored["optimizer"])
            for group, own in zip(self.optimizer.param_groups, settings):  # the flags say, not the checkpoint
                group.update({**own, "params": group["params"]})
        elif not args.evaluate:
            say(f"note: there is no state of {args.optimizer} to go on from, so it starts anew")
        state = RunState.from_state_dict(stored, self.device)
        if "history" not in stored:  # a published checkpoint, whose history is in its log alone
            state.history = read_log(self.folder)[:state.epoch]
        if "iteration" not in stored:
            state.iteration = state.epoch * batches
        # Where the batch size has changed, the running epoch goes on at the same sample.
        batch = state.batch * int(arguments.get("train_batch", args.train_batch)) // args.train_batch
        state.batch = min(batch, batches)
        if not self.world.leads:
            state.meters, state.window = Meters(), Meters()  # the stored sums are over all processes
        if args.start_epoch is not None:
            state = RunState(epoch=args.start_epoch, iteration=args.start_epoch * batches,
                             best_accuracy=state.best_accuracy, history=state.history[:args.start_epoch],
                             warned=state.warned)
        self.state = state
        if "random_state" in stored:
            set_random_state(stored["random_state"])


def require_network(model: nn.Module) -> None:
    """Refuse a model that the loop cannot train.

    Raises:
        TypeError: a member of :class:`Network` is missing.
    """
    absent = [name for name in (*Network.__annotations__, "engine_on") if not hasattr(model, name)]
    if absent:
        raise TypeError(f"build_model made a {type(model).__name__} without {' and '.join(absent)}, which a run asks "
                        "for: see utils.run.Network")


# What wrappers of modules put into the names of parameters: DataParallel and its kind, torch.compile, FSDP.
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def network_state(model: nn.Module, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """What a file holds of a network: its weights, and what they are."""
    return {"state_dict": model.state_dict(), "arguments": {**vars(args), "manualSeed": seed}, "versions": versions(),
            "network": {"name": type(model).__name__, "num_classes": model.num_classes}}


def load_network(model: nn.Module, stored: Mapping[str, Any], path: str | Path, *,
                 new_readout: bool = False) -> Mapping[str, Any]:
    """Load the weights of a checkpoint, ours or a published one, into ``model``, whichever of the two was wrapped.

    Args:
        new_readout: leave the readout as it is, whatever there is in the checkpoint.

    Returns:
        The checkpoint in our form.

    Raises:
        UserError: they are of another network or another number of classes, the sentence names both; or not finite.
    """
    if published.recognise(stored):
        stored = published.convert(stored, model, path)
    own = model.state_dict()
    state = _fitting(stored["state_dict"], own)
    theirs = stored.get("network", {})
    named = theirs.get("name", type(model).__name__), theirs.get("num_classes", model.num_classes)
    ours = type(model).__name__, model.num_classes
    if new_readout:
        named = named[0], model.num_classes
        state |= {name: value for name, value in own.items() if _unwrapped(name).startswith("classifier.")}
    if named != ours:
        raise UserError(f"{path} holds a {named[0]} with {named[1]} classes, but this run builds a {ours[0]} with "
                        f"{ours[1]} classes: use the script and --dataset that it was trained with")
    for name in [*own, *state]:
        found, expected = (tuple(d[name].shape) if torch.is_tensor(d.get(name)) else None for d in (state, own))
        if found != expected:
            raise UserError(f"{path} does not fit the {ours[0]} of this run: {name} has shape {found} in the file and "
                            f"{expected} in the network; build the network that it was trained with")
    bad = first_bad({name: state[name] for name, _ in model.named_parameters()})
    if bad:
        raise UserError(f"{path} holds numbers that are not finite in {bad}: resume from another file")
    model.load_state_dict(state)
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


def random_state() -> dict[str, Any]:
    """State of every random generator that a run may draw from, in plain types."""
    version, numbers, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()
    return {"python": [version, list(numbers), gauss], "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
            "torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_random_state(state: Mapping[str, Any]) -> None:
    """Go back to a state that :func:`random_state` returned; GPUs only if there are as many as then."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
