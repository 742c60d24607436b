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
from utils import checkpoint, published
from utils.checkpoint import Stored
from utils.distributed import World
from utils.errors import UserError
from utils.logs import read_log, write_log
from utils.meters import Meters
from utils.progress import say
from utils.provenance import versions
from utils.signals import Signals


class Network(Protocol):
    """What the loop asks of the ``torch.nn.Module`` that a script builds.

    Attributes:
        num_classes: number of logits; num_neurons: number of forward neurons.
    """

    num_classes: int
    num_neurons: int

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
        meters: sums over the running epoch; history: one row of ``log.txt`` per finished epoch.
        warned: kinds of warning that were given.
    """

    epoch: int = 0
    batch: int = 0
    iteration: int = 0
    evaluated: bool = True
    best_accuracy: float = -1.0  # below any, so that the first evaluation is the best so far
    meters: Meters = field(default_factory=Meters)
    history: list[list[float]] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """Everything, in plain types."""
        return {"epoch": self.epoch, "batch": self.batch, "iteration": self.iteration, "evaluated": self.evaluated,
                "best_acc": self.best_accuracy, "meters": self.meters.state_dict(), "history": self.history,
                "warned": self.warned}

    @classmethod
    def from_state_dict(cls, stored: Mapping[str, Any], device: torch.device) -> "RunState":
        """The state that :meth:`state_dict` returned; an epoch alone, as in a published checkpoint, will do."""
        return cls(epoch=int(stored.get("epoch", 0)), batch=int(stored.get("batch", 0)),
                   iteration=int(stored.get("iteration", 0)), evaluated=bool(stored.get("evaluated", True)),
                   best_accuracy=float(stored.get("best_acc", -1)), meters=Meters(stored.get("meters"), device),
                   history=[list(row) for row in stored.get("history", [])], warned=list(stored.get("warned", [])))


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
        """Stop a run whose loss is no longer a number.

        Raises:
            UserError: as said; it names the iteration.
        """
        bad = self.state.meters.first_bad()
        if bad is not None:
            iteration = self.state.iteration - self.state.batch - (-bad // self.args.accumulate)
            raise UserError(f"the loss is not finite at iteration {iteration}: resume from the last checkpoint in "
                             f"{self.folder} with a smaller --lr or a longer --warmup")

    def save(self, *, best: bool = False, rows: list[list[float]] | None = None) -> None:
        """Write a checkpoint and, if given, the rows of the log.

        Where that fails, a warning is all: the files of before are still there, and the next save tries again.

        Raises:
            UserError: the loss is not finite, so that the state is not worth a checkpoint.
        """
        self.require_finite()
        contents = self.state_dict()
        if not self.world.leads:
            return
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

    def resume(self, found: Stored) -> None:
        """Go on from a checkpoint, ours or a published one.

        Raises:
            UserError: it is of another network, or holds something that is no state of a run.
        """
        path, stored = found
        try:
            if published.recognise(stored):
                stored = published.convert(stored, self.model, path)
            load_network(self.model, stored, path)
            self.load_state_dict(stored)
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            raise UserError(f"{path} does not hold the state of a run ({type(error).__name__}: "
                             f"{str(error).splitlines()[0]}): resume from another file") from error

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds. All processes of a job must ask for it, as its sums are over all of them."""
        model = self.model
        return {"state_dict": model.state_dict(), "optimizer": self.optimizer.state_dict(), **self.state.state_dict(),
                "meters": self.world.merged(self.state.meters).state_dict(), "random_state": random_state(),
                "arguments": {**vars(self.args), "manualSeed": self.seed}, "versions": versions(),
                "network": {"name": type(model).__name__, "num_classes": model.num_classes}}

    def load_state_dict(self, stored: Mapping[str, Any]) -> None:
        """Take over everything but the model, whatever is there; ``--start-epoch`` has the last word."""
        args, arguments, batches = self.args, stored.get("arguments", {}), len(self.train_loader)
        if stored.get("optimizer") and arguments.get("optimizer", args.optimizer) == args.optimizer:
            self.optimizer.load_state_dict(stored["optimizer"])
        state = RunState.from_state_dict(stored, self.device)
        if "history" not in stored:  # a published checkpoint, whose history is in its log alone
            state.history = read_log(self.folder)[:state.epoch]
        if "iteration" not in stored:
            state.iteration = state.epoch * batches
        # Where the batch size has changed, the running epoch goes on at the same sample.
        batch = state.batch * int(arguments.get("train_batch", args.train_batch)) // args.train_batch
        state.batch = min(batch, batches)
        if not self.world.leads:
            state.meters = Meters()  # the stored sums are over all processes
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


def load_network(model: nn.Module, stored: Mapping[str, Any], path: str | Path) -> None:
    """Load the weights of a checkpoint into ``model``.

    Raises:
        UserError: they are of another network or another number of classes; the sentence names both.
    """
    state, own = stored["state_dict"], model.state_dict()
    theirs = stored.get("network", {})
    named = theirs.get("name", type(model).__name__), theirs.get("num_classes", model.num_classes)
    ours = type(model).__name__, model.num_classes
    if named != ours:
        raise UserError(f"{path} holds a {named[0]} with {named[1]} classes, but this run builds a {ours[0]} with "
                         f"{ours[1]} classes: use the script and --dataset that it was trained with")
    for name in [*own, *state]:
        found, expected = (tuple(d[name].shape) if torch.is_tensor(d.get(name)) else None for d in (state, own))
        if found != expected:
            raise UserError(f"{path} does not fit the {ours[0]} of this run: {name} has shape {found} in the file and "
                             f"{expected} in the network; build the network that it was trained with")
    model.load_state_dict(state)


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
