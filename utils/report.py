"""What a trained network does, measured: rates, spikes, equilibrium, gradient, operations and energy, on one page.

:func:`write` makes the page of any model that holds one FeedbackSNN; ``python -m utils.report FOLDER...`` draws curves
of runs, see utils/curves.py.
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
from modules.neurons import LIBRARY
from modules.operations import Recorder
from utils import curves, energy, figures, measures, pages
from utils.files import write_atomically
from utils.progress import Progress, say

FOLDER = "report"  # in a run's
STAGES = ("rates", "spikes", "equilibrium", "gradient", "page")
# Samples of which every step is recorded: at least so many, and as many as have so many units in all; the dense engine,
# which does it, takes up to seconds for each.
RECORDED, UNITS = 4, 1_000_000


def write(model: nn.Module, inputs: Tensor, targets: Tensor, folder: str | Path, *, scale_factor: float = 1.0,
          batch: int | None = None, samples: int = 32, loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
          ) -> dict[str, Any]:
    """Write ``report.md``, ``report.json`` and pictures; model and random state are left as they were.

    Args:
        model: holds one FeedbackSNN, or is one, and calls it once.
        inputs, targets: a batch, of which the first ``samples`` are used, and the first few recorded step by step.
        folder: to write to, made if need be; what ``report.json`` holds is returned too.
        scale_factor, batch: of training: ``scale_factor / batch`` times a sample's loss drives the backward network,
            and ``batch`` samples, by default all of ``inputs``, share a step of the optimizer.
        loss: of the model's outputs and targets, the mean over the batch.

    Raises:
        ValueError: the model holds no FeedbackSNN or several, or does not call it just once, or there is no sample.
    """
    networks = [module for module in model.modules() if isinstance(module, FeedbackSNN)]
    if len(networks) != 1:
        raise ValueError(f"a report is of one FeedbackSNN, and this {type(model).__name__} holds {len(networks)}")
    if not len(inputs) or samples < 1:
        raise ValueError("a report needs at least one sample")
    network, folder, batch = networks[0], Path(folder), batch or len(inputs)
    folder.mkdir(parents=True, exist_ok=True)
    others = [m for m in {*model.modules()} - {*network.modules()}
              if list(m.parameters(recurse=False)) and not isinstance(m, nn.Linear)]
    device = next((p.device for p in model.parameters()), inputs.device)
    inputs, targets = inputs[:samples].to(device), targets[:samples].to(device)
    engine, tested = engines.select(network.engine, device), Recorder()
    progress = Progress(STAGES, label="report", total=len(STAGES), unit="stage")
    stages = (progress.report(stage) for stage in progress)
    with _as_it_was(model, device):
        next(stages)
        calls = []
        for mode in (False, True):
            model.eval()
            network.train(mode)  # so that dropout of its synapses alone is on
            calls.append(measures.call(model, network, inputs, targets, scale_factor * len(inputs) / batch, loss,
                                       engine))
        inference, training = calls
        units = sum(count[0].numel() for count in inference.forward.counts)
        recorded = max(RECORDED, UNITS // units)
        next(stages)
        tested.simulate_forward(*inference.first(recorded))
        recording = measures.record(training, recorded)
        evaluated, forward, backward = (own.per_sample() for own in (tested.forward, *recording[:2]))
        next(stages)
        equilibrium = measures.equilibrium(inference)
        next(stages)
        gradient = measures.gradient(training, network)
        next(stages)
        machine = energy.Machine(weights=sum(p.numel() for p in network.parameters()), units=units,
                                 time_step=network.time_step)
        works = energy.training(forward, backward, sweeps=gradient["sweeps"], readout=training.readout,
                                parameters=sum(p.numel() for p in model.parameters() if p.requires_grad) / batch)
        results = {
            "network": {"neuron": str(network.neuron), "couple": str(network.couple), "time_step": network.time_step,
                        "time_step_back": network.time_step_back, "event_input": network.event_input,
                        "dropout": any(c.dropout is not None for c in training.circuit.connections),
                        "feedback": network.feedback is not None,
                        "own": [type(neuron).__name__ for neuron in (network.neuron, network.couple)
                                if type(neuron) not in LIBRARY],
                        "others": sorted({type(layer).__name__ for layer in others})},
            "how": {"samples": len(inputs), "recorded": tested.forward.samples, "scale_factor": scale_factor,
                    "batch": batch, "engine": engine.name, "device": str(device)},
            "rates": measures.rates(inference, training, recording.backward),
            "histograms": {"forward": measures.histogram(inference.forward.counts, network.time_step),
                           "backward": measures.histogram(recording.backward.spikes, network.time_step_back)},
            "equilibrium": equilibrium, "gradient": gradient,
            "operations": {"evaluation": evaluated, "training, forward": forward, "training, backward": backward},
            "energy": {"inference": machine.compare(energy.inference(evaluated, inference.readout), evaluated),
                       "training": machine.compare(works, backward), "memories": machine.memories,
                       "bits": machine.bits, "constants": energy.CONSTANTS, "source": energy.SOURCE}}
        write_atomically(folder / "report.json", (json.dumps(results, indent=1) + "\n").encode())
        write_atomically(folder / "report.md", pages.page(results).encode())
        try:
            for name, figure in figures.of_report(results, recording, network).items():
                figures.save(figure, folder / f"{name}.png")
        except Exception as error:  # of matplotlib and all that it depends on, which may raise anything
            say(f"warning: pictures of {folder} could not be drawn ({type(error).__name__}: {error})")
        next(stages, None)
    say(f"report: {folder / 'report.md'}")
    return results


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


if __name__ == "__main__":
    curves.main()
