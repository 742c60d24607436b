"""What a trained network does, measured: rates, spikes, equilibrium, gradient, operations and energy, on one page.

:func:`write` makes the page of any model that holds one FeedbackSNN. Curves of runs are drawn by

    python -m utils.report FOLDER...          see utils/curves.py
"""
import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules import FeedbackSNN, engines
from modules.operations import Recorder
from utils import curves, energy, figures, measures, pages
from utils.files import write_atomically
from utils.progress import Progress, say

PHASES = ("evaluation", "training, forward", "training, backward")
RECORDED = 4  # samples of which every step is recorded, by the dense engine, which takes up to seconds for each


def write(model: nn.Module, inputs: Tensor, targets: Tensor, folder: str | Path, *, scale_factor: float = 1.0,
          batch: int | None = None, samples: int = 32, loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
          ) -> dict[str, Any]:
    """Write ``report.md``, ``report.json`` and pictures; model and random state are left as they were.

    Args:
        model: holds one FeedbackSNN, or is one, and calls it once.
        inputs, targets: a batch, of which the first ``samples`` are used, and the first few recorded step by step.
        folder: to write to; made if need be.
        scale_factor, batch: of training: ``scale_factor / batch`` times a sample's loss drives the backward network,
            and ``batch`` samples, by default all of ``inputs``, share a step of the optimizer.
        loss: of the model's outputs and targets, the mean over the batch.

    Returns:
        The contents of ``report.json``.

    Raises:
        ValueError: the model holds no FeedbackSNN or several, or does not call it just once, or there is no sample.
    """
    networks = [module for module in model.modules() if isinstance(module, FeedbackSNN)]
    if len(networks) != 1:
        raise ValueError(f"a report is of one FeedbackSNN, and this {type(model).__name__} holds {len(networks)}")
    if not len(inputs) or samples < 1:
        raise ValueError("a report needs at least one sample")
    network, folder, batch = networks[0], Path(folder), batch or len(inputs)
    device = next((p.device for p in model.parameters()), inputs.device)
    inputs, targets = inputs[:samples].to(device), targets[:samples].to(device)
    engine, tested = engines.select(network.engine, device), Recorder()
    with _as_it_was(model, device):
        stages = _announced("rates", "spikes", "equilibrium", "gradient", "page")
        next(stages)
        drive = scale_factor * len(inputs) / batch
        inference, training = (measures.call(_in_mode(model, network, mode), network, inputs, targets, drive, loss,
                                             engine) for mode in (False, True))
        next(stages)
        tested.simulate_forward(*inference.first(RECORDED))
        recording = measures.record(training, RECORDED)
        next(stages)
        equilibrium = measures.equilibrium(inference)
        next(stages)
        gradient = measures.gradient(training, network)
        next(stages)
        results = {
            "network": {"neuron": str(network.neuron), "couple": str(network.couple), "time_step": network.time_step,
                        "time_step_back": network.time_step_back, "event_input": network.event_input,
                        "dropout": any(c.dropout is not None for c in training.circuit.connections),
                        "feedback": network.feedback is not None, "others": sorted(set(training.others))},
            "how": {"samples": len(inputs), "recorded": recording.forward.samples, "scale_factor": scale_factor,
                    "batch": batch, "engine": engine.name, "device": str(device)},
            "rates": measures.rates(inference, training, recording.backward),
            "histograms": {"forward": measures.histogram(inference.forward.counts, network.time_step),
                           "backward": measures.histogram(recording.backward.spikes, network.time_step_back)},
            "equilibrium": equilibrium, "gradient": gradient,
            "operations": {phase: counts.per_sample() for phase, counts in
                           zip(PHASES, (tested.forward, recording.forward, recording.backward))}}
        results["energy"] = _energy(model, network, training.readout, results)
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in _pictures(network, recording, results).items():
            figures.save(figure, folder / f"{name}.png")
        write_atomically(folder / "report.json", (json.dumps(results, indent=1) + "\n").encode())
        write_atomically(folder / "report.md", pages.page(results).encode())
        next(stages, None)
    say(f"report: {folder / 'report.md'}")
    return results


def _energy(model: nn.Module, network: FeedbackSNN, readout: int, results: dict[str, Any]) -> dict[str, Any]:
    """The energy of inference and training, and what it is made from."""
    tested, forward, backward = (results["operations"][phase] for phase in PHASES)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    machine = energy.Machine(weights=sum(p.numel() for p in network.parameters()), time_step=network.time_step,
                             units=sum(layer["units"] for layer in results["rates"]))
    training = energy.training(forward, backward, sweeps=results["gradient"]["sweeps"], readout=readout,
                               parameters=trained / results["how"]["batch"])
    return {"inference": machine.compare(energy.inference(tested, readout), tested),
            "training": machine.compare(training, backward),
            "memories": machine.memories, "bits": machine.bits, "constants": energy.CONSTANTS, "source": energy.SOURCE}


def _pictures(network: FeedbackSNN, recording: measures.Recording, results: dict[str, Any]) -> dict[str, Any]:
    """The figures of a report by name."""
    forward, backward = network.neuron.v_threshold, network.couple.v_threshold
    return {
        "rates": figures.rates(results["histograms"]),
        "raster": figures.raster(recording.trains),
        "potentials": figures.potentials(recording.trains, recording.potentials,
                                         {"forward": [forward], "backward": [backward, -backward]}),
        "equilibrium": figures.equilibrium(results["equilibrium"], network.time_step),
        "gradient": figures.gradient(results["gradient"]),
        "energy": figures.energy({title: results["energy"][title]["energy"] for title in ("inference", "training")})}


def _in_mode(model: nn.Module, network: FeedbackSNN, training: bool) -> nn.Module:
    """The model in evaluation, but for the dropout of its synapses in training."""
    model.eval()
    network.train(training)
    return model


@contextlib.contextmanager
def _as_it_was(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Leave modes and random state as they are; inside, gradients flow."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.enable_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        for module, training in modes:
            module.training = training


def _announced(*stages: str) -> Iterator[str]:
    """The stages of a report one by one, on a bar, or as lines where no terminal shows one."""
    progress = Progress(stages, label="report", total=len(stages))
    for stage in progress:
        if progress.terminal:
            progress.report(stage)
        else:
            say(f"report: {stage}")
        yield stage


if __name__ == "__main__":
    curves.main()
