"""Several processes that train one network: who they are, what they agree on, and how gradients are summed.

Each process computes the gradients of its share of a batch. The backward network spikes, so what a sample feeds into it
must not depend on how many processes there are: losses are divided by the size of the whole batch, and gradients are
summed over processes, where PyTorch's default would average them.
"""
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils.errors import UserError
from utils.meters import Meters
from utils.processes import at_end_of_parent

# How long a process waits for the others: rank 0 may have a data set to convert; one that died is noticed at once.
PATIENCE = timedelta(hours=12)
WORD_AFTER = 20.0  # seconds of waiting for the others at the start, after which a process says so


@dataclass
class World:
    """The processes of a job, one of which this is."""

    rank: int = 0  # of this process; 0 writes files and prints
    size: int = 1  # number of processes
    _control: dist.ProcessGroup | None = None  # on the CPU, so that agreeing never waits for a GPU
    _store: dist.Store | None = field(default=None, repr=False)
    _asked: tuple[Tensor, dist.Work] | None = field(default=None, repr=False)

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """Context that rank 0 leaves before the others enter: it downloads what they then find."""
        if not self.leads:
            dist.barrier(self._control)
        yield
        if self.size > 1 and self.leads:
            dist.barrier(self._control)

    def leaders(self, value: Any) -> Any:
        """The value that rank 0 has."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, group=self._control, device=torch.device("cpu"))
        return values[0]

    def says(self, sentence: str) -> bool:
        """Whether this process should say on which sentence it ends: the first of those that end on it."""
        try:
            return self._store is None or self._store.add(f"said {sentence}", 1) == 1
        except (RuntimeError, ValueError):  # the store is gone, with whoever kept it
            return True

    def agree(self, stop: int | None, save: bool) -> tuple[int | None, bool]:
        """Make all processes act on a signal at the same iteration, whichever of them heard it and when.

        ``stop`` is the number of a signal that asks to stop, or None; ``save``, whether a checkpoint is asked for. With
        several processes the answer is to the call before, so that none ever waits for the slowest here.
        """
        if self.size == 1:
            return stop, save
        before, wishes = self._asked, torch.tensor([stop or 0, int(save)])
        self._asked = wishes, dist.all_reduce(wishes, dist.ReduceOp.MAX, group=self._control, async_op=True)
        if before is None:
            return None, False
        before[1].wait()
        agreed, save = before[0].tolist()
        return agreed or None, bool(save)

    def merged(self, meters: Meters) -> Meters:
        """The sums over all processes."""
        if self.size == 1:
            return meters
        states: list[Any] = [None] * self.size
        dist.all_gather_object(states, meters.state_dict(), group=self._control)
        return sum(map(Meters, states), Meters())

    def share(self, model: nn.Module) -> nn.Module:
        """``model`` such that its gradients are summed over processes, while the backward pass goes on.

        With several processes the result has a context ``no_sync()``, in which they wait for a later backward pass.
        """
        if self.size == 1:
            return model
        wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
        wrapped.register_comm_hook(None, _sum)
        return wrapped


def _sum(_: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Communication hook: the sum of a bucket of gradients, where the default is the mean."""
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda future: future.value()[0])


def start_processes(gpu_ids: str, argv: Sequence[str]) -> None:
    """Become PyTorch's launcher, of a process for each GPU that ``--gpu-id`` lists, if those are several."""
    if _launched() or "," not in gpu_ids or not torch.cuda.is_available():
        return
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={len(gpu_ids.split(','))}"]
    os.execv(sys.executable, [sys.executable, *launcher, sys.argv[0], *argv])


def join() -> World:
    """The world that a launcher put this process in, ``torchrun`` for one; a world of one process without a launcher.

    Processes other than rank 0 keep silent from here on, but for what they end on. A UserError says that a launcher's
    variables are there, but not all of them, or with values that no launcher gives.
    """
    if not _launched() or os.environ["WORLD_SIZE"] == "1":
        return World()
    given = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    rank, size, address, port = given.values()
    numbers = all(number and number.isdecimal() for number in (rank, size, port))
    if not address or not numbers or not int(rank) < int(size) or not int(port) < 2**16:
        found = ", ".join(f"{name}={value}" for name, value in given.items())
        raise UserError(f"the variables of a launcher are set to {found}, which makes no job of several processes: "
                        "start with torchrun, or unset RANK and WORLD_SIZE")
    patience = threading.Timer(WORD_AFTER, print, (
        f"process {rank} of {size} waits for the others at {address}:{port}, as RANK and WORLD_SIZE say: unset them to "
        "train with one process",), {"file": sys.stderr, "flush": True})
    patience.daemon = True
    patience.start()
    # Killed, a launcher leaves its processes behind: they save and stop as if it had asked them to.
    at_end_of_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        socket.getaddrinfo(address, port)
        store, rank, size = next(dist.rendezvous("env://", timeout=PATIENCE))
    except (OSError, dist.DistError) as error:  # a name that nobody knows, a port that is in use
        patience.cancel()
        reason = str(error).split("\n")[0]
        raise UserError(f"the processes of this job cannot meet at {address}:{port} ({reason}): see to MASTER_ADDR and "
                        "MASTER_PORT") from error
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        # After a restart the launcher's store still holds the addresses of the processes before. Across machines its
        # count of restarts is not the same for all, so there the launcher must not share its store (see docs).
        store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", store=store, rank=rank,
                            world_size=size, timeout=PATIENCE)
    world = World(rank, size, dist.new_group(backend="gloo", timeout=PATIENCE), store)
    patience.cancel()
    if not world.leads:
        sys.stdout = open(os.devnull, "w")
    return world


def local_rank() -> int:
    """Number of this process among those on this machine."""
    return int(os.environ.get("LOCAL_RANK", 0)) if _launched() else 0


def leave() -> None:
    """End what :func:`join` began."""
    if dist.is_initialized():
        dist.destroy_process_group()


def lost_another(error: Exception) -> bool:
    """Whether ``error`` is that of a process whose partner in communication ended."""
    return dist.is_initialized() and (
        isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL", "Connection")))


def _launched() -> bool:
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ
