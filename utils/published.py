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
_FEEDBACK = "network.feedback.parametrizations.weight.original"


def recognise(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint was written by the published scripts."""
    return any(re.match(r"(module\.)?network_x\.", name) for name in checkpoint["state_dict"])


def convert(checkpoint: Mapping[str, Any], model: nn.Module, path: str | Path) -> dict[str, Any]:
    """A published checkpoint in our form; a UserError with ``path`` and a parameter, if it does not fit ``model``."""
    theirs: dict[str, Tensor] = {}  # each parameter once, under its short name, in order of first appearance
    for match, value in ((_NAME.match(name), value) for name, value in checkpoint["state_dict"].items()):
        if match:
            theirs.setdefault(".".join(match.groups()), value)
    own, names = dict(model.named_parameters()), _names(theirs, model)
    for name, value in theirs.items():
        target = own.get(names.get(name, ""))
        if target is None or target.shape != value.shape:
            expected = "nothing" if target is None else f"shape {tuple(target.shape)}"
            raise UserError(f"{path} is a published checkpoint of another network: {name} has shape "
                            f"{tuple(value.shape)} where the {type(model).__name__} with {model.num_classes} classes "
                            f"of this run has {expected}")
    if absent := sorted(set(own) - set(names.values())):
        raise UserError(f"{path} is a published checkpoint of another network than the {type(model).__name__} of this "
                        f"run: it has no {absent[0]}")
    return {**{key: checkpoint[key] for key in ("epoch", "best_acc") if key in checkpoint},
            "state_dict": {**model.state_dict(), **{names[name]: value for name, value in theirs.items()}},
            "optimizer": _optimizer(checkpoint.get("optimizer"), [list(own).index(names[name]) for name in theirs])}


def _names(theirs: Mapping[str, Tensor], model: nn.Module) -> dict[str, str]:
    """Our name of each published parameter: the input synapse, the layers in order, the feedback, the classifier."""
    layers = {int(match[1] or 0): match[0] for match in
              (re.match(r"network_s(\d*)\.\w+(?=\.weight$)", name) for name in theirs) if match}
    our_layers = [f"network.layers.{i}" for i, s in enumerate(model.network.layers) if s.stored_weight is not None]
    inputs = [name.removesuffix(".weight") for name in theirs if re.match(r"network_x\.\w+\.weight$", name)]
    pairs = [*zip(inputs, ["network.input"]), *zip((layers[n] for n in sorted(layers)), our_layers),
             ("classifier", "classifier")]
    names = {f"{a}.{kind}": f"{b}.{kind}" for a, b in pairs for kind in ("weight", "bias") if f"{a}.{kind}" in theirs}
    return names | {name: _FEEDBACK for name in theirs if name.endswith(".weight_w")}


def _optimizer(optimizer: Mapping[str, Any] | None, positions: list[int]) -> dict[str, Any] | None:
    """The optimizer's state with each parameter at our position instead of theirs, or None without one."""
    if not optimizer or len(optimizer.get("param_groups", ())) != 1:
        return None
    ours = dict(enumerate(positions))
    return {"state": {ours[int(key)]: value for key, value in optimizer["state"].items() if int(key) in ours},
            "param_groups": [{**optimizer["param_groups"][0], "params": sorted(positions)}]}
