"""Numbers that are not finite: a threshold hides them, so that a network of NaN weights would spike on."""
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Watch:
    """The first iteration at which the loss, a gradient or a weight of a model was not finite, kept on the device, so
    that a training step never waits for it."""

    def __init__(self, model: nn.Module) -> None:
        named = {name: p for name, p in model.named_parameters() if p.numel()}
        self.parameters = list(named.values())
        self.names = ["loss", *(f"gradient of {name}" for name in named), *(f"weight {name}" for name in named)]
        device = self.parameters[0].device if named else torch.device("cpu")
        self._first = torch.full((len(self.names),), torch.inf, dtype=torch.float64, device=device)

    def see_loss(self, loss: Tensor, iteration: int) -> None:
        """Look at the loss of an iteration, 0-dim, before its backward pass."""
        self._note(self._first[:1], torch.isfinite(loss.detach()).reshape(1), iteration)

    @torch.no_grad()
    def see_parameters(self, iteration: int) -> None:
        """Look at gradients and weights after the step of an iteration."""
        gradients = [p if p.grad is None else p.grad for p in self.parameters]
        extremes = [torch.stack(torch.aminmax(tensor)) for tensor in (*gradients, *self.parameters)]  # NaN if any is
        self._note(self._first[1:], torch.isfinite(torch.stack(extremes)).all(dim=1), iteration)

    def first(self) -> tuple[int, str] | None:
        """Iteration and name of what ceased to be finite first, or None (this waits for the device)."""
        iteration, position = self._first.min(dim=0)
        return None if torch.isinf(iteration) else (int(iteration), self.names[int(position)])

    @staticmethod
    def _note(first: Tensor, finite: Tensor, iteration: int) -> None:
        first.copy_(torch.where(finite, first, first.clamp(max=iteration)))


def first_bad(tensors: Any, name: str = "") -> str | None:
    """Name of the first tensor within nested containers that holds a number that is not finite, or None."""
    if torch.is_tensor(tensors):
        return None if torch.isfinite(tensors).all() else name
    lists = isinstance(tensors, (list, tuple))
    inside = tensors.items() if isinstance(tensors, Mapping) else enumerate(tensors) if lists else ()
    return next(filter(None, (first_bad(value, f"{name}.{key}".lstrip(".")) for key, value in inside)), None)
