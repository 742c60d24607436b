"""From a command line to a finished run: what happens around the training loop."""
import argparse
import os
import random
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from utils import checkpoint, cli, distributed, provenance, published, signals, training
from utils.files import open_folder
from utils.logs import describe, read_log
from utils.meters import Meters
from utils.progress import say
from utils.training import Run, RunState

Loaders = tuple[DataLoader, DataLoader]


def main(manual: str, *, defaults: Mapping[str, Any], dataset_defaults: Mapping[str, Mapping[str, Any]],
         engines: tuple[str, ...], precisions: tuple[str, ...],
         build_model: Callable[[argparse.Namespace], nn.Module],
         build_loaders: Callable[[argparse.Namespace], Loaders]) -> None:
    """Run an experiment as its command line asks; a user's mistake ends the process with one sentence and status 1.

    Args:
        manual, defaults, dataset_defaults, engines, precisions: see :func:`utils.cli.parse`.
        build_model: makes the network; build_loaders: makes the loaders of training and test data.
    """
    cli.exit_on_mistake(partial(_run, manual, defaults, dataset_defaults, engines, precisions, build_model,
                                build_loaders))


def _run(manual: str, defaults: Mapping[str, Any], dataset_defaults: Mapping[str, Mapping[str, Any]],
         engines: tuple[str, ...], precisions: tuple[str, ...], build_model: Callable, build_loaders: Callable) -> None:
    signals.ignore_save_requests()
    load = cache(checkpoint.load)  # once for its arguments, once for its state
    args = cli.parse(manual, defaults=defaults, dataset_defaults=dataset_defaults, engines=engines,
                     precisions=precisions,
                     find_checkpoint=checkpoint.newest_good, stored_arguments=lambda path: stored_arguments(load(path)))
    distributed.start_processes(args)
    world = distributed.join()
    args = world.leaders(args)  # so that a seed that was drawn, or a checkpoint that was found, is the same for all
    device = choose_device(args, world.size)
    seed_everything(args)
    args.pin_memory, args.rank, args.ranks = device.type == "cuda", world.rank, world.size
    with world.leader_first():
        train_loader, test_loader = build_loaders(args)
    model = build_model(args).to(device)
    run = Run(args, device, model, make_optimizer(model, args), train_loader, test_loader, world=world)
    if args.resume:
        resume(run, load(args.resume))
        load.cache_clear()
    say(summary(run))
    for change in args.changes:
        say(f"changed: {change}")
    if args.dry_run:
        check_data(run)
    elif args.evaluate:
        say(f"test: {describe(training.evaluate(run))}")
    else:
        if world.leads:
            open_folder(run.folder, fresh=not args.resume)
            provenance.record(run.folder, args, device_name(device))
        training.fit(run)
    distributed.leave()


def stored_arguments(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments in a checkpoint; none in a published one."""
    arguments = stored.get("arguments")
    return arguments if isinstance(arguments, dict) else {}


def choose_device(args: argparse.Namespace, processes: int = 1) -> torch.device:
    """The device of ``--gpu-id``; the CPU, with a word, when there is no GPU.

    Of several processes on a machine, each takes the GPU of its number, in the list of ``--gpu-id`` if that is one.

    Raises:
        ValueError: there is no GPU of that number.
    """
    numbers = args.gpu_id.split(",")
    if args.gpu_id != "-1" and not all(number.strip().isdigit() for number in numbers):
        raise ValueError(f"--gpu-id takes the number of a GPU, or -1 for the CPU, not '{args.gpu_id}'")
    if args.gpu_id == "-1" or not torch.cuda.is_available():
        if args.gpu_id != "-1":
            say("no GPU is available: running on the CPU")
        return torch.device("cpu")
    count, local = torch.cuda.device_count(), distributed.local_rank()
    if processes > 1 and len(numbers) == 1:
        numbers = [str(number) for number in range(count)]
    for number in numbers:
        if int(number) >= count:
            raise ValueError(f"there is no GPU {number}: this machine has {count}, numbered from 0")
    if local >= len(numbers):
        raise ValueError(f"process {local} of this machine has no GPU: start at most {len(numbers)} processes on it, "
                         "or add --gpu-id -1 to run on the CPU")
    device = torch.device("cuda", int(numbers[local]))
    torch.cuda.set_device(device)
    return device


def seed_everything(args: argparse.Namespace) -> None:
    """Seed every random generator with ``--manualSeed``; make GPU arithmetic repeatable if asked for."""
    random.seed(args.manualSeed)
    np.random.seed(args.manualSeed % 2**32)
    torch.manual_seed(args.manualSeed)
    torch.backends.cudnn.benchmark = not args.deterministic
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def make_optimizer(model: nn.Module, args: argparse.Namespace) -> torch.optim.Optimizer:
    """The optimizer of ``--optimizer``; the training loop sets its learning rate at every iteration."""
    if args.optimizer == "Adam":
        return torch.optim.Adam(model.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    return torch.optim.SGD(model.parameters(), lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay)


def resume(run: Run, stored: Mapping[str, Any]) -> None:
    """Put ``run`` into the state of a checkpoint, ours or a published one.

    Raises:
        ValueError: it is of another network, or holds something that is no state of a run.
    """
    path = run.args.resume
    try:
        if published.recognise(stored):
            stored = published.convert(stored, run.model, path)
        checkpoint.load_model(run.model, stored, path)
        _restore(run, stored)
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise ValueError(f"{path} does not hold the state of a run ({type(error).__name__}: "
                         f"{str(error).splitlines()[0]}): resume from another file") from error


def _restore(run: Run, stored: Mapping[str, Any]) -> None:
    """Put everything but the model into the state of a checkpoint; ``--start-epoch`` has the last word."""
    args, batches = run.args, len(run.train_loader)
    arguments = stored_arguments(stored)
    if stored.get("optimizer") and arguments.get("optimizer", args.optimizer) == args.optimizer:
        run.optimizer.load_state_dict(stored["optimizer"])
    epoch, history = int(stored.get("epoch", 0)), stored.get("history")
    if history is None:  # a published checkpoint, whose history is in its log alone
        history = read_log(run.folder)[:epoch]
    # Where the batch size has changed, the running epoch goes on at the same sample.
    batch = int(stored.get("batch", 0)) * int(arguments.get("train_batch", args.train_batch)) // args.train_batch
    iteration = int(stored.get("iteration", epoch * batches))
    meters = stored.get("meters") if run.world.leads else None  # sums over all processes
    run.state = RunState(epoch=epoch, batch=min(batch, batches), iteration=iteration,
                         evaluated=bool(stored.get("evaluated", True)), best_accuracy=float(stored.get("best_acc", -1)),
                         meters=Meters(meters, run.device), history=[list(row) for row in history],
                         warned=list(stored.get("warned", [])))
    if args.start_epoch is not None:
        run.state = RunState(epoch=args.start_epoch, iteration=args.start_epoch * batches,
                             best_accuracy=run.state.best_accuracy, history=run.state.history[:args.start_epoch],
                             warned=run.state.warned)
    if "random_state" in stored:
        checkpoint.set_random_state(stored["random_state"])


def device_name(device: torch.device) -> str:
    """What a device is, in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def summary(run: Run) -> str:
    """What is about to run, in a few lines; the same text for the same arguments."""
    args, model, state = run.args, run.model, run.state
    drive = args.scale_factor / args.train_batch
    hidden = ("changes", "usual_drive", "pin_memory", "rank", "ranks")
    lines = [
        f"network    {type(model).__name__}, {sum(p.numel() for p in model.parameters()):,} parameters, "
        f"{model.num_neurons:,} neurons, {model.num_classes} classes",
        f"device     {f'{run.world.size} processes, each on ' if run.world.size > 1 else ''}"
        f"{device_name(run.device)}; engine {model.engine_on(run.device)}; PyTorch {torch.__version__}",
        f"data       {args.dataset}, {len(run.train_loader.dataset):,} training and {len(run.test_loader.dataset):,} "
        f"test samples; {len(run.train_loader)} iterations of {args.train_batch} samples an epoch",
        f"gradient   scale_factor / batch = {args.scale_factor:g} / {args.train_batch} = {drive:.4g} drives the "
        f"backward network, {args.time_step} + {args.time_step_back} steps",
        f"run        folder {run.folder}, seed {args.manualSeed}"
        + (f"; resumed {args.resume} after epoch {state.epoch}, iteration {state.iteration}" if args.resume else ""),
        "arguments  " + " ".join(f"{name}={value}" for name, value in sorted(vars(args).items()) if name not in hidden),
    ]
    if abs(drive / args.usual_drive - 1) > 0.01:
        lines.append(f"note: scale_factor / batch is {drive:.4g} instead of this experiment's {args.usual_drive:.4g}, "
                     f"so backward spikes are {'more' if drive > args.usual_drive else 'fewer'}; --scale_factor "
                     f"{args.usual_drive * args.train_batch:g} would keep them as they are")
    return "\n".join(lines)


def check_data(run: Run) -> None:
    """Read one training and one test batch, pass a sample through the network, and say so."""
    inputs, *_ = next(iter(run.train_loader))
    next(iter(run.test_loader))
    with torch.no_grad():
        run.model.eval()(inputs[:1].to(run.device))
    say("dry run: data, network and device are in order")
