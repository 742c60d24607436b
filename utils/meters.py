"""Sums over the samples of an epoch, kept on the device so that a training step never waits for it."""
from typing import Any

import torch
from torch import Tensor


class Meters:
    """Running sums of loss, accuracy and firing rates, float64; empty before the first update."""

    def __init__(self, state: dict[str, Any] | None = None, device: torch.device | None = None) -> None:
        self.sums: dict[str, Tensor] = {name: t.to(device) for name, t in state["sums"].items()} if state else {}
        self.neurons: list[int] = list(state["neurons"]) if state else []  # of each layer: weights of the mean rate

    def __add__(self, other: "Meters") -> "Meters":
        """The sums of both; either may have none, and where the other has other quantities it alone counts."""
        sums = other.sums or self.sums
        if self.sums and self.sums.keys() == other.sums.keys():
            totals = torch._foreach_add(list(self.sums.values()), [other.sums[name] for name in self.sums])
            sums = dict(zip(self.sums, totals))
        return Meters({"sums": sums, "neurons": other.neurons or self.neurons})

    @classmethod
    @torch.no_grad()
    def of(cls, losses: Tensor, logits: Tensor, targets: Tensor, statistics: Any, counts: Tensor) -> "Meters":
        """The sums over one batch.

        Args:
            losses: of each sample, ``(batch,)``; logits: ``(batch, classes)``; targets: ``(batch,)``.
            statistics: firing rates of the pass, as :class:`modules.SpikeStatistics`.
            counts: bool ``(batch,)``, which samples count: all, or none of them.
        """
        best = (logits.topk(min(5, logits.shape[1]), dim=1).indices == targets[:, None]) & counts[:, None]
        samples, loss = counts.double().sum(), torch.where(counts, losses, 0).double().sum()
        means = {"forward": statistics.forward_rates, "backward": statistics.backward_rates,
                 "saturated": statistics.saturated, "sweeps": statistics.sweeps, "residual": statistics.residual}
        sums = {"samples": samples, "loss": loss, "top1": best[:, 0].double().sum(), "top5": best.double().sum(),
                **{name: mean.detach().double() * samples for name, mean in means.items() if mean is not None}}
        return cls({"sums": sums, "neurons": statistics.neurons})

    def results(self) -> dict[str, Any]:
        """Means over the samples so far (this waits for the device).

        Returns:
            ``loss``, ``top1`` and ``top5`` in percent, ``forward_rate`` and ``backward_rate`` over all neurons,
            ``forward_rates`` and ``backward_rates`` per layer, ``saturated``, of IDE ``sweeps`` and ``residual``; None
            where there is no such thing, as backward in evaluation.
        """
        means = {name: (total / self.sums["samples"]).tolist() for name, total in self.sums.items()}

        def over_neurons(rates: list[float] | None) -> float | None:
            return rates and sum(r * n for r, n in zip(rates, self.neurons)) / sum(self.neurons)

        forward, backward = means.get("forward"), means.get("backward")
        return {"loss": means["loss"], "top1": 100 * means["top1"], "top5": 100 * means["top5"],
                "forward_rate": over_neurons(forward), "backward_rate": over_neurons(backward),
                "forward_rates": forward, "backward_rates": backward,
                **{name: means.get(name) for name in ("saturated", "sweeps", "residual")}}

    def state_dict(self) -> dict[str, Any]:
        """Everything, in plain types, to go on from later."""
        return {"sums": {name: total.cpu() for name, total in self.sums.items()}, "neurons": list(self.neurons)}
