"""An experiment: from a command line to a finished run."""
import argparse
import os
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from utils import checkpoint, cli, distributed, folder, mistakes, provenance, report, signals, training
from utils.checkpoint import Stored
from utils.cli import Arguments, Invocation, Parser
from utils.distributed import World
from utils.errors import UserError
from utils.files import alone_in
from utils.loading import make_loaders, spread
from utils.logs import describe
from utils.network import load_network, network_state, reading, require_network
from utils.progress import say
from utils.run import Run

# Training set, test set, and the transform of training inputs, random or not, see :class:`utils.loading.Keyed`.
Data = tuple[Dataset, Dataset, Callable[[Any], Any] | None]


@dataclass(frozen=True)
class Experiment:
    """What a script is: its defaults, its data, its network; ``mnist_lenet.py`` is an example.

    Args:
        manual: the script's docstring, shown by ``--help``.
        defaults: of flags, by destination (``train_batch``).
        dataset_defaults: what differs for a data set, which also names the data sets that there are.
        build_model: makes the network, a :class:`utils.network.Network`; build_data: makes the data.
        flags: functions that add flags, and checks of them, to a :class:`utils.cli.Parser`.
    """

    manual: str
    _: KW_ONLY
    defaults: Mapping[str, Any]
    dataset_defaults: Mapping[str, Mapping[str, Any]]
    build_model: Callable[[Arguments], nn.Module]
    build_data: Callable[[Arguments], Data]
    flags: Sequence[Callable[[Parser], None]] = ()

    def main(self, argv: Sequence[str] | None = None) -> None:
        """Do what a command line asks, by default the process's own; a user's mistake is a SystemExit in a sentence."""
        with mistakes.in_a_sentence(World()):
            world = distributed.join()
        with mistakes.in_a_sentence(world):
            self._run(world, sys.argv[1:] if argv is None else argv)
            distributed.leave()

    def arguments(self, argv: Sequence[str] = ()) -> Arguments:
        """What :attr:`build_model` and :attr:`build_data` get for a command line; errors as of :func:`cli.parse`."""
        return self._parse(argv).args

    def loaders(self, args: Arguments, **settings: Any) -> tuple[DataLoader, DataLoader]:
        """Loaders of training and test data; ``seed`` and other settings of :func:`utils.loading.make_loaders`."""
        given = [getattr(args, name) for name, flag in self._parser().flags.items() if flag.type is cli.path]
        with mistakes.about(*filter(None, given)):
            train, test, transform = self.build_data(args)
        return make_loaders(train, test, args, transform=transform, **settings)

    def _parser(self, **settings: Any) -> Parser:
        parser = Parser(self.manual, **settings)
        cli.add_shared_flags(parser, tuple(self.dataset_defaults))
        for add in self.flags:
            add(parser)
        return parser

    def _parse(self, argv: Sequence[str]) -> Invocation:
        return cli.parse(self._parser, defaults=self.defaults, dataset_defaults=self.dataset_defaults, argv=argv)

    def _run(self, world: World, argv: Sequence[str]) -> None:
        signals.ignore_save_requests()
        invocation = self._parse(argv)
        distributed.start_processes(invocation.args.gpu_id, argv)
        invocation = agreed(invocation, world)
        args, seed, found = invocation.args, invocation.seed, invocation.stored
        if args.export:
            if world.leads:
                for remark in invocation.remarks:
                    say(remark)
                self._export(args, found)
            return
        device = choose_device(args.gpu_id, world.size)
        seed_everything(seed, deterministic=args.deterministic)
        with world.leader_first():
            loaders = self.loaders(args, seed=seed, pin_memory=device.type == "cuda", rank=world.rank, ranks=world.size)
        model = self.build_model(args).to(device)
        require_network(model)
        run = Run(args, invocation.folder, seed, device, model, make_optimizer(model, args), *loaders, world=world,
                  defaults=invocation.defaults)
        places = [run.folder, *([found.path.parent] if found else [])]
        if args.new_readout:
            with reading(found.path):
                load_network(model, found.contents, found.path, new_readout=True)
        elif found:
            with mistakes.about(*places):
                run.resume(found)
        if args.start_epoch is not None:
            run.start_at(args.start_epoch)
            if run.trained:
                raise UserError(f"--max-iters {args.max_iters} ends before --start-epoch {args.start_epoch} begins, "
                                f"after {run.state.iteration} iterations: give more of them")
        say(summary(run, invocation))
        if args.dry_run:
            check_data(run)
            return
        writes = world.leads and (args.report or not args.evaluate)
        alone = alone_in(run.folder, contents="a report" if args.evaluate else "checkpoints", wait=False,
                         remedy="choose another with -c")
        with alone if writes else nullcontext() as run.lock:
            if args.evaluate:
                say(f"test: {describe(training.evaluate(run))}")
            else:
                if writes:
                    with mistakes.about(*places):
                        same = None if args.new_readout else found  # an earlier state of this run
                        folder.arrange(run, same)
                        if not (run.over and (run.folder / "args.json").exists()):  # else nothing comes of args
                            provenance.record(run.folder, args, seed=seed, device=device_name(device), before=same and
                                              same.path.parent, iterations_per_epoch=len(run.train_loader))
                training.fit(run)
            if writes and args.report:
                with mistakes.about(run.folder):
                    write_report(run)

    def _export(self, args: Arguments, found: Stored) -> None:
        """Write the network of a checkpoint to the file that ``--export`` names."""
        model = self.build_model(args)
        with reading(found.path):
            stored = load_network(model, found.contents, found.path)
        numbers = {name: stored[name] for name in ("epoch", "iteration", "best_acc", "best_of") if name in stored}
        target = Path(args.export)
        with mistakes.about(target.parent):
            if target.exists() and not _is_export(target):  # such as the checkpoint of a run, even of this one
                raise UserError(f"{target} is there already, and is no network that --export wrote: name another file")
            target.parent.mkdir(parents=True, exist_ok=True)
            checkpoint.save({**network_state(model, args, args.manualSeed), **numbers}, target)
        say(f"{target} holds the {type(model).__name__} of {found.path}: use it with --resume")


def _is_export(file: Path) -> bool:
    """Whether a file holds a network, and no more that a run would miss."""
    try:
        return "optimizer" not in checkpoint.load(file).contents
    except UserError:
        return False


def agreed(invocation: Invocation, world: World) -> Invocation:
    """What rank 0 settled, so that a seed that was drawn, or a checkpoint that was found, is the same for all."""
    own = invocation.stored
    path = own and own.path
    leaders, leaders_path = world.leaders((replace(invocation, stored=None), path))
    return replace(leaders, stored=own if leaders_path == path else leaders_path and checkpoint.load(leaders_path))


def choose_device(gpu_id: str, processes: int) -> torch.device:
    """The device of ``--gpu-id``; the CPU, with a word, when there is no GPU; a UserError for a number too large.

    Of several processes on a machine, each takes the GPU of its number, in the list of ``--gpu-id`` if that is one.
    """
    if gpu_id == "-1":
        return torch.device("cpu")
    if not all(number.strip().isdecimal() for number in gpu_id.split(",")):
        raise UserError(f"--gpu-id takes the number of a GPU, or -1 for the CPU, not '{gpu_id}'")
    if not torch.cuda.is_available():
        say("no GPU is available: running on the CPU")
        return torch.device("cpu")
    numbers, count, local = list(map(int, gpu_id.split(","))), torch.cuda.device_count(), distributed.local_rank()
    if processes > 1 and len(numbers) == 1:
        numbers = list(range(count))
    if max(numbers) >= count:
        raise UserError(f"there is no GPU {max(numbers)}: this machine has {count}, numbered from 0")
    if local >= len(numbers):
        raise UserError(f"process {local} of this machine has no GPU: start at most {len(numbers)} processes on it, "
                        "or add --gpu-id -1 to run on the CPU")
    device = torch.device("cuda", numbers[local])
    torch.cuda.set_device(device)
    return device


def device_name(device: torch.device) -> str:
    """What a device is, in words."""
    threads = torch.get_num_threads()
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {threads} thread{'s'[:threads > 1]}"


def seed_everything(seed: int, *, deterministic: bool) -> None:
    """Seed every random generator; make GPU arithmetic repeatable if asked for."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def make_optimizer(model: nn.Module, args: argparse.Namespace) -> torch.optim.Optimizer:
    """The optimizer of ``--optimizer``; the training loop sets its learning rate at every iteration."""
    if args.optimizer == "Adam":
        return torch.optim.Adam(model.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    return torch.optim.SGD(model.parameters(), lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay)


def summary(run: Run, invocation: Invocation) -> str:
    """What is about to run, in a few lines; the same text for the same arguments."""
    args, model, state, stored, usual = run.args, run.model, run.state, invocation.stored, invocation.usual_drive
    batch = min(args.train_batch, len(run.train_loader.dataset))
    drive = args.scale_factor / batch
    origin = f"; the network of {stored.path}" if args.new_readout else f"; resumed {stored.path}" if stored else ""
    place = f"after epoch {state.epoch}, iteration {state.iteration}"
    if args.start_epoch is not None:
        origin += f"; begins as if {place}"
    elif stored and not args.new_readout:
        origin += f" {place}"
    lines = [
        f"network    {type(model).__name__}, {sum(p.numel() for p in model.parameters()):,} parameters, "
        f"{model.num_neurons:,} neurons, {model.num_classes} classes",
        f"device     {f'{run.world.size} processes, each on ' if run.world.size > 1 else ''}"
        f"{device_name(run.device)}; engine {model.engine_on(run.device)}; PyTorch {torch.__version__}",
        f"data       {args.dataset}, {len(run.train_loader.dataset):,} training and {len(run.test_loader.dataset):,} "
        f"test samples; {len(run.train_loader)} iterations of {args.train_batch} samples an epoch",
        f"gradient   scale_factor / batch = {args.scale_factor:g} / {batch} = {drive:.4g} drives the "
        "backward network",
        f"run        folder {run.folder}, seed {run.seed}{origin}",
        "arguments  " + " ".join(f"{name}={value}" for name, value in sorted(vars(args).items())),
        *invocation.remarks,
    ]
    if abs(drive / usual - 1) > 0.01:
        lines.append(f"note: scale_factor / batch is {drive:.4g} instead of this experiment's {usual:.4g}, so backward "
                     f"spikes are {'more' if drive > usual else 'fewer'}; --scale_factor "
                     f"{usual * batch:g} would keep them as they are")
    if args.optimizer == "Adam" and not args.evaluate:
        lines.append(f"warning: Adam does not see the scale of the gradient, but its learning rate is divided by "
                     f"scale_factor too, as published: it is {args.lr / args.scale_factor:.3g} in effect; --lr "
                     f"{args.lr * args.scale_factor:g} would make it {args.lr:g}")
    return "\n".join(lines)


def write_report(run: Run) -> None:
    """Write ``report/`` into the folder of a run, from some test samples."""
    args, data = run.args, run.test_loader.dataset
    chosen = spread(len(data), args.report_samples)
    random.Random(0).shuffle(chosen)  # as the first few, which are recorded, may be of one class too
    samples = [data[0, index, True][:2] for index in chosen]
    inputs, targets = torch.utils.data.default_collate(samples)
    report.write(run.model, inputs, targets, run.folder / report.FOLDER, samples=len(samples),
                 scale_factor=args.scale_factor, batch=args.train_batch)


@torch.no_grad()
def check_data(run: Run) -> None:
    """Read one training and one test batch, pass a sample through the network, and say so."""
    inputs, *_ = training.on_device(next(iter(run.train_loader)), run)
    training.on_device(next(iter(run.test_loader)), run)
    run.model.eval()(inputs[:1])
    say("dry run: data, network and device are in order")
