"""A run: what it is made of and how far it has come, written to a checkpoint and read from it side by side."""
import argparse
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from utils import checkpoint, metrics
from utils.checkpoint import BEST, LAST, Stored
from utils.distributed import World
from utils.errors import UserError
from utils.files import FolderLock
from utils.finite import Watch, first_bad
from utils.logs import read_log, write_log
from utils.meters import Meters
from utils.metrics import PendingRows
from utils.network import load_network, network_state, reading
from utils.progress import say
from utils.signals import Signals


@dataclass
class RunState:
    """How far a run has come."""

    epoch: int = 0  # finished epochs
    batch: int = 0  # iterations done in the running one
    iteration: int = 0  # iterations done since the start of the run
    evaluated: bool = True  # whether the network was evaluated since the last iteration
    best_acc: float = -1.0  # top-1 of the best evaluation, in percent; below any before the first
    best_of: int = 0  # test samples of that evaluation, 0 where that is not known
    meters: Meters = field(default_factory=Meters)  # over the running epoch
    window: Meters = field(default_factory=Meters)  # since the last row of metrics.jsonl
    history: list[list[float]] = field(default_factory=list)  # a row of log.txt per finished epoch
    warned: list[str] = field(default_factory=list)  # kinds of warning that were given

    def state_dict(self) -> dict[str, Any]:
        """Everything, in plain types."""
        return {**vars(self), "meters": self.meters.state_dict(), "window": self.window.state_dict()}

    @classmethod
    def from_state_dict(cls, stored: Mapping[str, Any], device: torch.device) -> "RunState":
        """The state that :meth:`state_dict` returned; an epoch alone, as in a published checkpoint, will do."""
        count, meters = partial(_at_least, 0, int), partial(Meters, device=device)
        kinds = {"epoch": count, "batch": count, "iteration": count, "evaluated": bool,
                 "best_acc": partial(_at_least, -1.0, float), "best_of": count, "meters": meters, "window": meters,
                 "history": lambda rows: [list(map(float, row)) for row in rows], "warned": list}
        return cls(**{name: kind(stored[name]) for name, kind in kinds.items() if name in stored})


def _at_least(least: float, kind: type, stored: Any) -> Any:
    """A stored number; ValueError for one below ``least``, and for NaN, which no later accuracy would exceed."""
    if not (number := kind(stored)) >= least:
        raise ValueError(f"{number} is not at least {least}")
    return number


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
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of the script, see :class:`utils.cli.Invocation`
    saved: bool = True  # whether the last attempt to write a checkpoint succeeded
    lock: FolderLock | None = None  # on the folder, while this process writes to it

    def __post_init__(self) -> None:
        self.watch, self.recorder = Watch(self.model), PendingRows(self.folder, self.make_folder)

    @property
    def batch_size(self) -> int:
        """Number of samples in the coming batch, over all processes: the last one of an epoch may be smaller."""
        return min(self.args.train_batch, len(self.train_loader.dataset) - self.state.batch * self.args.train_batch)

    @property
    def trained(self) -> bool:
        """Whether all epochs, or the iterations that were asked for, are done."""
        limit = self.args.max_iters
        return self.state.epoch >= self.args.epochs or (limit is not None and self.state.iteration >= limit)

    @property
    def over(self) -> bool:
        """Whether all is done: no iteration and no evaluation is to come."""
        return self.trained and self.state.evaluated

    @property
    def outdated(self) -> bool:
        """Whether evaluations are to come on another number of test samples than that of the best one so far."""
        return not self.over and self.state.best_of not in (0, len(self.test_loader.dataset))

    def make_folder(self) -> None:
        """Make the folder, should it be gone; a UserError, if another run has it by now."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.lock:
            self.lock.renew()

    def require_finite(self) -> None:
        """Raise UserError if a number has ceased to be finite (this waits for the device)."""
        if bad := self.watch.first():
            raise self.overflow(f"the {bad[1]} is not finite", bad[0])

    def overflow(self, what: str, iteration: int) -> UserError:
        """The end of a run whose numbers are no longer numbers: what, when, and how to go on."""
        return UserError(f"{what} at iteration {iteration}: resume from the last checkpoint in {self.folder} with a "
                         "smaller --lr or a longer --warmup")

    def save(self, *, best: bool = False, rows: list[list[float]] | None = None) -> None:
        """Write a checkpoint and, if given, the rows of the log; UserError, if a number is not finite. All processes of
        a job must call it."""
        self.require_finite()
        self.write_metrics(lasting=True)
        meters, window = (self.world.merged(own).state_dict() for own in (self.state.meters, self.state.window))
        if self.world.leads:
            self.write(best=best, rows=rows, meters=meters, window=window)

    def write(self, *, best: bool = False, rows: list[list[float]] | None = None, **sums: Any) -> None:
        """Write what this process knows, with ``sums`` over all of them in place of its own; UserError as :meth:`save`.

        Where that fails, a warning is all: the files of before are still there, and the next save tries again.
        """
        contents = {**self.state_dict(), **sums}
        state = {"weight": dict(self.model.named_parameters()), "optimizer": contents["optimizer"]["state"]}
        if bad := first_bad(state):
            raise UserError(f"the {bad} is not finite after iteration {self.state.iteration}, which is not saved: "
                            f"resume from the last checkpoint in {self.folder} with a smaller --lr")
        self.saved = False
        with _attempt(f"the checkpoint of iteration {self.state.iteration} could NOT be written to {self.folder}"):
            self.make_folder()
            # The best one first: killed between the two, a run evaluates again and finds it as good.
            checkpoint.save(contents, *(self.folder / name for name in ((BEST, LAST) if best else (LAST,))))
            self.saved = True
        if rows is not None:
            with _attempt(f"the log of {len(rows)} epochs could NOT be written to {self.folder}"):
                write_log(self.folder, rows)

    def write_metrics(self, *, lasting: bool = False) -> None:
        """Append the rows of ``metrics.jsonl`` that wait; where that fails, a warning is all, and they wait on."""
        with _attempt(f"rows could NOT be written to {self.folder / metrics.NAME}"):
            self.recorder.write(self.world.merged, leads=self.world.leads, lasting=lasting)

    def resume(self, found: Stored) -> None:
        """Go on from a checkpoint, ours or a published one; UserError, if it holds no state of such a run."""
        with reading(found.path):
            self.load_state_dict(load_network(self.model, found.contents, found.path), found.path.parent)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds, with the sums of this process."""
        return {**network_state(self.model, self.args, self.seed), "optimizer": self.optimizer.state_dict(),
                **self.state.state_dict(), "random_state": random_state(), "defaults": dict(self.defaults)}

    def load_state_dict(self, stored: Mapping[str, Any], folder: Path) -> None:
        """Take over all but the network, whatever is there; a published checkpoint has its history in the log in
        ``folder`` alone."""
        args, arguments, batches = self.args, stored.get("arguments", {}), len(self.train_loader)
        theirs = stored.get("optimizer")
        if theirs and arguments.get("optimizer", args.optimizer) == args.optimizer:
            own = self.optimizer.state_dict()["param_groups"]  # settings are by the flags, not by the checkpoint
            groups = [{**ours, "params": group["params"], "lr": group["lr"]}
                      for ours, group in zip(own, theirs["param_groups"], strict=True)]
            self.optimizer.load_state_dict({"state": theirs["state"], "param_groups": groups})
            if any(torch.is_tensor(value) and value.shape not in (parameter.shape, ())
                   for parameter, values in self.optimizer.state.items() for value in values.values()):
                raise ValueError("the optimizer's state has another shape than the weights")
        elif not args.evaluate:
            say(f"note: there is no state of {args.optimizer} to go on from, so it starts anew")
        state = self.state = RunState.from_state_dict(stored, self.device)
        if "history" not in stored:
            state.history = read_log(folder)[:state.epoch]
        if "iteration" not in stored:
            state.iteration = state.epoch * batches
        done = state.batch * int(arguments.get("train_batch", args.train_batch))  # samples of the running epoch
        whole = done >= len(self.train_loader.dataset)
        state.batch, again = (batches, 0) if whole else divmod(done, args.train_batch)
        if again and not args.evaluate:
            say(f"note: {again} samples of the running epoch come again, as its batches end elsewhere now")
        method = vars(args).get("method")  # a script may have no such flag
        if state.meters.sums and arguments.get("method", method) != method and not args.evaluate:
            say("note: with another --method the means over the running epoch begin anew")
        if not self.world.leads:
            state.meters, state.window = Meters(), Meters()  # the stored sums are over all processes
        if "random_state" in stored:
            set_random_state(stored["random_state"])

    def start_at(self, epoch: int) -> None:
        """Go to the beginning of an epoch, from 0; what is known of those before it stays."""
        state = self.state
        if len(state.history) < max(epoch, state.epoch):
            say(f"note: log.txt has rows of {len(state.history)} of {max(epoch, state.epoch)} epochs, so the number of "
                "a row is not that of its epoch")
        self.state = RunState(epoch=epoch, iteration=epoch * len(self.train_loader), best_acc=state.best_acc,
                              best_of=state.best_of, history=state.history[:epoch], warned=state.warned)


@contextmanager
def _attempt(loss: str) -> Iterator[None]:
    """Context of writing that may fail: training goes on with a warning of what was lost."""
    try:
        yield
    except OSError as error:
        say(f"WARNING: {loss} ({error.strerror or error}); training goes on, and the next time tries again")


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
