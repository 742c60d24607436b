"""The training loop that all scripts share."""
import argparse
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules import SpikeStatistics
from modules.implicit import NotFiniteError
from utils.checkpoint import LAST
from utils.errors import UserError
from utils.logs import describe
from utils.meters import Meters
from utils.metrics import Clock
from utils.progress import Progress, say
from utils.run import Run
from utils.schedule import learning_rate
from utils.signals import Stopped

# Iterations between looks at whether all is finite: each look waits for the device, which on a CPU costs nothing.
FINITE_INTERVAL = {"cpu": 1, "cuda": 50}
SATURATED_SHARE = 0.01  # of the output units; from here on the gradient error shows


def fit(run: Run) -> None:
    """Train until all epochs are done; evaluate, log and save after each.

    A UserError, if a number is not finite (the last good checkpoint is kept), or the last checkpoint was not written; a
    SystemExit, if a signal asked the run to stop: its state is saved.
    """
    state = run.state
    learner = run.world.share(run.model)
    with run.signals:
        try:
            while not run.over:
                finish_epoch(run, train_one_epoch(run, learner), evaluate(run))
        except Stopped as stopped:
            run.save()
            go_on = f"go on with --resume {run.folder / LAST}" if run.saved else "NOT saved, see above"
            say(f"stopped by {stopped} in epoch {state.epoch + 1} after {state.iteration} iterations: {go_on}")
            raise SystemExit(stopped.status) from None
    best = f"best test accuracy {state.best_acc:.2f}%; " if state.best_acc >= 0 else ""  # no evaluation of its own
    say(f"finished after {state.epoch} epochs, {state.iteration} iterations; {best}results in {run.folder}")
    if not run.saved:
        raise UserError(f"the last checkpoint could not be written to {run.folder}: what was learnt since the one "
                        "before is lost")


def finish_epoch(run: Run, train: dict[str, Any], test: dict[str, Any]) -> None:
    """Log, save and report the results of an epoch, or of the part after which ``--max-iters`` ended the training."""
    state = run.state
    lines = [f"epoch {state.epoch + 1}/{run.args.epochs}, {state.iteration} iterations",
             f"  train: {describe(train)}", f"  test:  {describe(test)}"]
    for kind, sentence in gradient_warnings(run.args, train).items():
        if kind not in state.warned:
            state.warned.append(kind)
            lines.append(f"warning: {sentence}")
    backward = math.nan if train["backward_rate"] is None else train["backward_rate"]  # IDE has no backward spikes
    rows = [*state.history, [_learning_rate(run, last=True), train["loss"], test["loss"], train["top1"], test["top1"],
                             train["forward_rate"], backward, test["forward_rate"]]]
    if state.batch == len(run.train_loader):
        state.epoch, state.batch, state.meters, state.history = state.epoch + 1, 0, Meters(), rows
    if best := test["top1"] > state.best_acc:
        state.best_acc, state.best_of = test["top1"], len(run.test_loader.dataset)
    state.evaluated = True
    run.save(best=best, rows=rows)
    say("\n".join(lines))  # last, so that nothing about a terminal decides what is kept


def train_one_epoch(run: Run, learner: nn.Module) -> dict[str, Any]:
    """Train to the end of the running epoch, from wherever in it the run stands, or to ``--max-iters``.

    Returns means over the epoch, see :meth:`utils.meters.Meters.results`; raises Stopped, if a signal asked for it, or
    UserError, if a number is not finite. A backward pass of ``learner`` leaves gradients of the whole batch.
    """
    args, state, loader = run.args, run.state, run.train_loader
    if run.trained or state.batch == len(loader):  # resumed where only the evaluation was missing
        return run.world.merged(state.meters).results()
    learner.train()
    loader.batch_sampler.start(state.epoch, skip=state.batch * args.train_batch)
    progress = Progress(loader, label=f"epoch {state.epoch + 1}/{args.epochs}", total=len(loader), done=state.batch)
    clock, began, first = Clock(run.device, state.iteration), time.perf_counter(), state.iteration
    for batch in progress:
        look = (state.iteration + 1) % FINITE_INTERVAL[run.device.type] == 0
        train_on(batch, run, learner, look=look)
        if args.log_every and state.iteration % args.log_every == 0:
            run.recorder.note(_row(run, "train"), state.window, clock.lap(state.iteration))
            state.window = Meters()
        if look:
            run.require_finite()
            run.write_metrics()
        if progress.due:
            seconds = (time.perf_counter() - began) / (state.iteration - first)
            progress.report(f"{describe(state.meters.results())}, {seconds:.3g} s an iteration")
        if run.trained:
            break
        heed_signals(run, save_due=bool(args.save_every) and state.iteration % args.save_every == 0)
    run.require_finite()
    return run.world.merged(state.meters).results()


def train_on(batch: Sequence[Tensor], run: Run, learner: nn.Module, *, look: bool) -> None:
    """One step of the optimizer with the gradients of a batch of inputs, targets and keys.

    With ``look``, a loss that is not finite is refused before its backward pass (which waits for the device).
    """
    args, state, iteration = run.args, run.state, run.state.iteration + 1
    for group in run.optimizer.param_groups:
        group["lr"] = _learning_rate(run) / args.scale_factor
    run.optimizer.zero_grad()
    parts = list(zip(*(t.chunk(args.accumulate) for t in on_device(batch, run))))
    for number, (inputs, targets, keys) in enumerate(parts, start=1):
        statistics = SpikeStatistics()
        with learner.no_sync() if run.world.size > 1 and number < len(parts) else nullcontext():
            logits = learner(inputs, statistics, keys=keys)
            losses = F.cross_entropy(logits, targets, reduction="none")
            loss = torch.where(keys >= 0, losses, 0).sum() / run.batch_size * args.scale_factor
            run.watch.see_loss(loss, iteration)
            if look:
                run.require_finite()
            try:
                loss.backward()
            except NotFiniteError as error:  # a gradient that overflowed after the loss, which thresholds would hide
                raise run.overflow(str(error), iteration) from error
        own = Meters.of(losses, logits, targets, statistics, counts=keys >= 0)
        state.meters += own
        state.window += own
    run.optimizer.step()
    run.watch.see_parameters(iteration)
    state.batch, state.iteration, state.evaluated = state.batch + 1, iteration, False


def heed_signals(run: Run, *, save_due: bool = False) -> None:
    """Save if a signal asks for it or it is due; raise Stopped, in all processes at one place, if one asks for that."""
    stop, save_wanted = run.world.agree(run.signals.stop, run.signals.save_wanted())
    if save_wanted or save_due:
        run.save()
    if stop is not None:
        raise Stopped(stop)


def on_device(batch: Sequence[Tensor], run: Run) -> list[Tensor]:
    """Inputs, targets and keys; a UserError for a target that is no class of the network, of which a GPU would die."""
    low, high = batch[1].aminmax()
    if not 0 <= low <= high < run.model.num_classes:
        raise UserError(f"the data have labels from {low} to {high}, and the network has {run.model.num_classes} "
                        "classes, numbered from 0: correct the one or the other")
    return [t.to(run.device, non_blocking=True) for t in batch]


@torch.no_grad()
def evaluate(run: Run) -> dict[str, Any]:
    """Loss, accuracies and firing rates on the test data; returns and errors as of :func:`train_one_epoch`."""
    run.model.eval()
    meters = Meters()
    progress = Progress(run.test_loader, label="test", total=len(run.test_loader), quiet=run.args.evaluate)
    for batch in progress:
        inputs, targets, keys = on_device(batch, run)
        statistics = SpikeStatistics()
        logits = run.model(inputs, statistics)
        losses = F.cross_entropy(logits, targets, reduction="none")
        meters += Meters.of(losses, logits, targets, statistics, counts=keys >= 0)
        if progress.due:
            progress.report(describe(meters.results()))
        heed_signals(run)
    results = run.world.merged(meters).results()
    if not math.isfinite(results["loss"]):
        raise UserError(f"the loss on the test data is not finite after iteration {run.state.iteration}: the network's "
                        "output overflows; resume from an earlier checkpoint with a smaller --lr or a longer --warmup")
    run.recorder.note(_row(run, "test"), meters)
    return results


def gradient_warnings(args: argparse.Namespace, train: dict[str, Any]) -> dict[str, str]:
    """Sentences on a spiking gradient that is starved or saturated, by kind; IDE's is neither."""
    warnings = {}
    if starved := [str(layer) for layer, rate in enumerate(train["backward_rates"] or ()) if rate == 0]:
        warnings["starved"] = (
            f"no backward spike reached layer {', '.join(starved)}, so the weights there did not learn: if this "
            f"persists, raise --scale_factor ({args.scale_factor:g}) or --time_step_back")
    if (train["saturated"] or 0) > SATURATED_SHARE:
        warnings["saturated"] = (
            f"{100 * train['saturated']:.1f}% of the output units fired at every backward step, so the gradient is cut "
            f"off there: lower --scale_factor ({args.scale_factor:g}) or raise --train-batch ({args.train_batch})")
    return warnings


def _learning_rate(run: Run, *, last: bool = False) -> float:
    """Learning rate of the coming iteration, or of the ``last`` one, before the division by ``scale_factor``."""
    args, state = run.args, run.state
    return learning_rate(state.iteration - last, state.epoch, base=args.lr, warmup=args.warmup,
                         milestones=args.schedule, gamma=args.gamma)


def _row(run: Run, phase: str) -> dict[str, Any]:
    """The head of a row of ``metrics.jsonl``; the running epoch is counted from 1."""
    return {"phase": phase, "epoch": run.state.epoch + 1, "iteration": run.state.iteration,
            "learning_rate": _learning_rate(run, last=True)}
