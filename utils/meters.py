"""Sums over the samples of an epoch, kept on the device so that a training step never waits for it."""
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Meters:
    """Running sums of loss, accuracy and firing rates.

    Attributes:
        sums: name to sum over samples, float64 tensors on the device; empty before the first update.
        neurons: number of neurons of each layer, the weights of the mean firing rate.
        batches: number of updates.
    """

    def __init__(self, state: dict[str, Any] | None = None, device: torch.device | None = None) -> None:
        self.sums: dict[str, Tensor] = {name: t.to(device) for name, t in state["sums"].items()} if state else {}
        self.neurons: list[int] = list(state["neurons"]) if state else []
        self.batches: int = state["batches"] if state else 0
        self._first_bad: Tensor | None = None

    @classmethod
    def total(cls, states: Sequence[dict[str, Any]]) -> "Meters":
        """The sum of some meters, given as their :meth:`state_dict`; those without an update count nothing."""
        used = [state for state in states if state["sums"]]
        meters = cls(used[0] if used else None)
        for state in used[1:]:
            meters.sums = {name: total + state["sums"][name] for name, total in meters.sums.items()}
        return meters

    @torch.no_grad()
    def update(self, losses: Tensor, logits: Tensor, targets: Tensor, statistics: Any, counts: Tensor) -> None:
        """Add one batch.

        Args:
            losses: of each sample, ``(batch,)``; logits: ``(batch, classes)``; targets: ``(batch,)``.
            statistics: firing rates of the pass, as :class:`modules.SpikeStatistics`.
            counts: bool ``(batch,)``, which samples count: all, or none of them.
        """
        best = (logits.topk(min(5, logits.shape[1]), dim=1).indices == targets[:, None]) & counts[:, None]
        samples, loss = counts.double().sum(), torch.where(counts, losses, 0).double().sum()
        totals = {"samples": samples, "loss": loss, "top1": best[:, 0].double().sum(), "top5": best.double().sum()}
        means = {"forward": statistics.forward_rates, "backward": statistics.backward_rates,
                 "saturated": statistics.saturated}
        totals |= {name: mean.detach().double() * samples for name, mean in means.items() if mean is not None}
        for name, total in totals.items():
            self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.neurons = statistics.neurons
        self.batches += 1
        bad = torch.where(torch.isfinite(loss), torch.inf, float(self.batches))
        self._first_bad = bad if self._first_bad is None else torch.minimum(self._first_bad, bad)

    def first_bad(self) -> int | None:
        """Number (from 1) of the first batch whose loss was not finite, or None (this waits for the device)."""
        number = torch.inf if self._first_bad is None else self._first_bad.item()
        return None if number == torch.inf else int(number)

    def results(self) -> dict[str, Any]:
        """Means over the samples so far (this waits for the device).

        Returns:
            ``loss``, ``top1`` and ``top5`` in percent, ``forward_rate`` and ``backward_rate`` over all neurons,
            ``forward_rates`` and ``backward_rates`` per layer, ``saturated``; backward entries are None in evaluation.
        """
        sums = {name: total.tolist() for name, total in self.sums.items()}
        samples = sums["samples"]

        def mean(name: str) -> Any:
            total = sums.get(name)
            return [x / samples for x in total] if isinstance(total, list) else total and total / samples

        def over_neurons(rates: list[float] | None) -> float | None:
            return rates and sum(r * n for r, n in zip(rates, self.neurons)) / sum(self.neurons)

        forward, backward = mean("forward"), mean("backward")
        return {"loss": mean("loss"), "top1": 100 * mean("top1"), "top5": 100 * mean("top5"),
                "forward_rate": over_neurons(forward), "backward_rate": over_neurons(backward),
                "forward_rates": forward, "backward_rates": backward, "saturated": mean("saturated")}

    def state_dict(self) -> dict[str, Any]:
        """Everything, in plain types, to go on from later."""
        return {"sums": {name: total.cpu() for name, total in self.sums.items()}, "neurons": list(self.neurons),
                "batches": self.batches}
