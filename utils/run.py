"""A run: what it is made of and how far it has come, written to a checkpoint and read from it side by side."""
import argparse
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from utils import checkpoint, metrics
from utils.checkpoint import Stored
from utils.distributed import World
from utils.errors import UserError
from utils.finite import Watch, first_bad
from utils.logs import read_log, write_log
from utils.meters import Meters
from utils.metrics import PendingRows
from utils.network import load_network, network_state
from utils.progress import say
from utils.signals import Signals


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
        self.write_metrics(lasting=True)
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

    def write_metrics(self, *, lasting: bool = False) -> None:
        """Append the rows of ``metrics.jsonl`` that wait; where that fails, a warning is all, and they wait on."""
        try:
            self.recorder.write(self.world.merged, leads=self.world.leads, lasting=lasting)
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
            if "history" not in stored:  # a published checkpoint, whose history is in its log alone
                stored = {**stored, "history": read_log(path.parent)[:int(stored.get("epoch", 0))]}
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
            asked = [{name: value for name, value in group.items() if name not in ("params", "lr")}
                     for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(stored["optimizer"])
            for group, settings in zip(self.optimizer.param_groups, asked):  # by the flags, not by the checkpoint
                group.update(settings)
        elif not args.evaluate:
            say(f"note: there is no state of {args.optimizer} to go on from, so it starts anew")
        state = RunState.from_state_dict(stored, self.device)
        if "iteration" not in stored:  # a published checkpoint
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
