"""Checkpoints of the published implementation: recognise them and convert them to ours.

There a network's synapses are called ``network_x`` (input), ``network_s1``, ``network_s2``, ... and each of its
parameters appears again under the function objects that hold the network. The feedback synapse is the one whose weight
is named ``weight_w``. Parameters have no names in the optimizer's state, only positions, in order of first appearance.
"""
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from utils.errors import UserError

_NAME = re.compile(r"^(?:module\.)?(?:(?:snn_func|snn_spide_conv\.snn_func)\.)?"
                   r"(network_\w+\.\w+|classifier)\.(weight_w|weight|bias)$")


def recognise(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint was written by the published scripts."""
    return any(re.match(r"(module\.)?network_x\.", name) for name in checkpoint["state_dict"])


def convert(checkpoint: Mapping[str, Any], model: nn.Module, path: str | Path) -> dict[str, Any]:
    """The same checkpoint in our form, for ``model``.

    Args:
        checkpoint: as read from a published file; model: the network that it should fit; path: for messages.

    Raises:
        UserError: it holds another network; the sentence names the parameter.
    """
    theirs = _parameters(checkpoint["state_dict"])
    targets = _names(theirs, model, path)
    state = dict(model.state_dict())
    for name, target in targets.items():
        state[target] = theirs[name]
    converted = {key: checkpoint[key] for key in ("epoch", "best_acc") if key in checkpoint}
    return {**converted, "state_dict": state, "optimizer": _optimizer(checkpoint, list(theirs), targets, model)}


def _parameters(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Each parameter once, under its short name, in order of first appearance."""
    parameters: dict[str, Tensor] = {}
    for name, value in state.items():
        match = _NAME.match(name)
        if match:
            parameters.setdefault(".".join(match.groups()), value)
    return parameters


def _names(theirs: Mapping[str, Tensor], model: nn.Module, path: str | Path) -> dict[str, str]:
    """Our name of each published parameter: the input synapse, the layers in order, the feedback, the classifier."""
    synapses = [name.rsplit(".", 1)[0] for name in theirs if name.endswith((".weight", ".weight_w"))]
    feedback = [s for s in synapses if f"{s}.weight_w" in theirs]
    layers = sorted((s for s in synapses if re.match(r"network_s\d*\.", s) and s not in feedback), key=_number)
    our_layers = [f"network.layers.{i}" for i, s in enumerate(model.network.layers) if s.stored_weight is not None]
    inputs = [s for s in synapses if s.startswith("network_x.")]
    pairs = [*zip(inputs, ["network.input"]), *zip(layers, our_layers), ("classifier", "classifier")]
    own = dict(model.named_parameters())
    stored = {"network.feedback": "network.feedback.parametrizations.weight.original"}
    names = {f"{a}.{kind}": f"{b}.{kind}" for a, b in pairs for kind in ("weight", "bias") if f"{a}.{kind}" in theirs}
    names |= {f"{s}.weight_w": stored["network.feedback"] for s in feedback}
    for name, value in theirs.items():
        target = own.get(names.get(name, ""))
        if target is None or target.shape != value.shape:
            expected = "nothing" if target is None else f"shape {tuple(target.shape)}"
            raise UserError(f"{path} is a published checkpoint of another network: {name} has shape "
                             f"{tuple(value.shape)} where the {type(model).__name__} with {model.num_classes} classes "
                             f"of this run has {expected}")
    absent = set(own) - set(names.values())
    if absent:
        raise UserError(f"{path} is a published checkpoint of another network than the {type(model).__name__} of this "
                         f"run: it has no {sorted(absent)[0]}")
    return names


def _optimizer(checkpoint: Mapping[str, Any], order: list[str], targets: Mapping[str, str],
               model: nn.Module) -> dict[str, Any] | None:
    """The optimizer's state with positions as in our model, or None without one."""
    optimizer = checkpoint.get("optimizer")
    if not optimizer or len(optimizer.get("param_groups", ())) != 1:
        return None
    ours = {name: position for position, (name, _) in enumerate(model.named_parameters())}
    positions = {position: ours[targets[name]] for position, name in enumerate(order)}
    group = {**optimizer["param_groups"][0], "params": list(range(len(ours)))}
    return {"state": {positions[int(key)]: value for key, value in optimizer["state"].items() if int(key) in positions},
            "param_groups": [group]}


def _number(synapse: str) -> int:
    """2 of ``network_s2.conv``; 0 without a number."""
    return int(re.match(r"network_s(\d*)", synapse)[1] or 0)
