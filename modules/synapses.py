"""Synapses: linear maps from spikes to currents, ``I = W s + b``, each with its transpose for the backward network.

A synapse owns its parameters and knows its geometry; the tensors that a simulation uses are handed to it, so that the
same call serves a norm-restricted weight, another memory layout or a saved tensor. To add a kind of synapse, derive
from :class:`Synapse` and define ``output_shape`` and ``current``; transpose and gradients are then found by automatic
differentiation, and overriding them only makes them faster. If it is a window that slides over an image, say so in
``window``, and the fast engines simulate it.
"""
from abc import ABC, abstractmethod
from dataclasses import dataclass
from inspect import isabstract
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight
from torch.nn.utils import parametrize

Shape = tuple[int, ...]


class MaxNorm(nn.Module):
    """Norm restriction ``w * min(1, c / ||w||_F)``, the factor held constant in differentiation (SPIDE, section 4.4).

    It keeps the feedback map a contraction, so that an equilibrium exists.
    """

    def __init__(self, max_norm: float) -> None:
        super().__init__()
        if not max_norm > 0:
            raise ValueError(f"max_norm must be positive, not {max_norm}")
        self.max_norm = max_norm

    def forward(self, weight: Tensor) -> Tensor:
        return weight * (self.max_norm / torch.linalg.vector_norm(weight.detach())).clamp(max=1)


@dataclass(frozen=True, kw_only=True)
class Window:
    """A linear map as a fast engine sees it: taps that slide over an image ``(channels, height, width)``.

    A layer of ``n`` units without geometry is an image ``(n, 1, 1)``.
    """

    kernel: tuple[int, int]  # height and width
    stride: int = 1  # as in a convolution, like padding, the same along both sides
    padding: int = 0
    spreads: bool = False  # slides over the target, as in a transposed convolution, not over the source
    weight: Tensor | None = None  # (kernel height, width, source, target channels), or None where channels stay apart
    scale: float = 1.0  # factor on the weight; each tap's weight where there is no other


class Synapse(nn.Module, ABC):
    """A linear map from spikes to synaptic currents, ``I = W s + b``, with variational dropout on the current.

    Classes of synapses are abstract or final: what derives from a final one would inherit a transpose and a window
    that need not be those of its current. Any parameter that ``current`` uses besides weight and bias gets its
    gradient too.

    Args:
        dropout: probability in [0, 1) that an output unit is cut off for a whole batch, at every step of both passes.
    """

    weight: Tensor | None  # None or absent, like bias, for a map without it
    bias: Tensor | None

    def __init__(self, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout

    @property
    def dropout(self) -> float:
        """Probability that an output unit is cut off; one out of [0, 1) is a ValueError."""
        return self._dropout

    @dropout.setter
    def dropout(self, probability: float) -> None:
        if not 0 <= probability < 1:
            raise ValueError(f"dropout must lie in [0, 1), not {probability}")
        self._dropout = probability

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        final = [base.__name__ for base in cls.__bases__ if issubclass(base, Synapse) and not isabstract(base)]
        if final and cls.__name__ != f"Parametrized{final[0]}":  # which PyTorch derives for a parametrized module
            raise TypeError(f"the synapse {final[0]} is final, and {cls.__name__} cannot derive from it: derive from "
                            "Synapse, and define output_shape and current (and window, to run on the fast engines)")

    @abstractmethod
    def output_shape(self, input_shape: Shape) -> Shape:
        """Shape of the current, without the batch dimension, for spikes of ``input_shape``."""

    def reaches(self, input_shape: Shape, target_shape: Shape) -> bool:
        """Whether spikes of ``input_shape`` can drive a layer of ``target_shape``."""
        return tuple(self.output_shape(input_shape)) == target_shape

    @abstractmethod
    def current(self, spikes: Tensor, weight: Tensor | None, bias: Tensor | None, output_shape: Shape) -> Tensor:
        """``W s + b`` for spikes ``(batch, *input_shape)``, as ``(batch, *output_shape)``."""

    def transpose(self, spikes: Tensor, weight: Tensor | None, input_shape: Shape) -> Tensor:
        """``W^T s`` for spikes ``(batch, *output_shape)``, as ``(batch, *input_shape)``."""
        with torch.inference_mode(False), torch.enable_grad():
            # In inference mode autograd follows no tensors, but it does copies of them.
            weight, bias, spikes = (t.clone() if t is not None and t.is_inference() else t
                                    for t in (weight, self._value("bias"), spikes))
            probe = torch.zeros(len(spikes), *input_shape, dtype=spikes.dtype, device=spikes.device, requires_grad=True)
            current = self.current(probe, weight, bias, tuple(spikes.shape[1:]))
            return torch.autograd.grad(current, probe, spikes)[0]

    def window(self, weight: Tensor | None, input_shape: Shape, output_shape: Shape) -> Window | None:
        """How this map with this weight looks to a fast engine; None, as here, for one that is no window.

        The bias, if any, must be one number for each channel of the target.
        """
        return None

    def parameter_gradients(self, source: Tensor, weight: Tensor | None, bias: Tensor | None, error: Tensor,
                            wanted: tuple[bool, bool]) -> tuple[Tensor | None, Tensor | None]:
        """Gradients for weight and bias, the outer products ``error (x) source`` and ``error (x) 1``, over the batch.

        Args:
            source: pre-synaptic firing rates ``(batch, *input_shape)``.
            error: gradient for the current, ``(batch, *output_shape)``.
            wanted: which of the two to compute; the other comes back as None.
        """
        if not any(wanted):
            return None, None
        leaves = [t if t is None else t.detach().requires_grad_(want) for t, want in zip((weight, bias), wanted)]
        with torch.enable_grad():
            current = self.current(source, *leaves, tuple(error.shape[1:]))
        found = iter(torch.autograd.grad(current, [t for t, want in zip(leaves, wanted) if want], error))
        return tuple(next(found) if want else None for want in wanted)

    def read(self) -> tuple[Tensor | None, ...]:
        """Weight, bias and further parameters as a simulation takes them.

        Forward pre-hooks run first: pruning and old-style weight normalisation compute the weight in them. Hooks of
        another kind, which would never run, are a ValueError.
        """
        name = type(self).__name__
        if "forward" in vars(self) or type(self).forward is not Synapse.forward:
            raise ValueError(f"a simulation does not call the synapse {name}, so its own forward would never run: "
                             "define current instead")
        if self._forward_hooks or self._backward_hooks or self._backward_pre_hooks:
            raise ValueError(f"a simulation does not call the synapse {name}, so its forward and backward hooks would "
                             "never run: remove them, or put them on the FeedbackSNN")
        for number, hook in self._forward_pre_hooks.items():
            extra = ({},) if number in self._forward_pre_hooks_with_kwargs else ()
            if hook(self, (), *extra) is not None:
                raise ValueError(f"a forward pre-hook of the synapse {name} changes what the synapse is called with, "
                                 "but a simulation does not call it: remove the hook")
        weight, bias = self._value("weight"), self._value("bias")
        further = (parameter for own, parameter in self.named_parameters()
                   if parameter is not weight and parameter is not bias
                   and not own.startswith(("parametrizations.weight.", "parametrizations.bias.")))
        return weight, bias, *further

    def _value(self, name: str) -> Tensor | None:
        """The weight or the bias, None if there is none; an AttributeError of a property's own is no such absence."""
        stated = getattr(type(self), name, None)
        return stated.fget(self) if isinstance(stated, property) else getattr(self, name, None)

    def __reduce_ex__(self, protocol: int) -> tuple:
        """Pickle as the class that was written; PyTorch refuses those that it derives for parametrized modules."""
        if not parametrize.is_parametrized(self):
            return super().__reduce_ex__(protocol)
        return _restored, (parametrize.type_before_parametrizations(self), self.__dict__)

    @property
    def stored_weight(self) -> nn.Parameter | None:
        """The parameter that is trained: the weight itself, or what ``weight`` is computed from under ``max_norm``."""
        return self.parametrizations.weight.original if parametrize.is_parametrized(self, "weight") else self.weight

    def forward(self, spikes: Tensor) -> Tensor:
        """The current ``W s + b`` without dropout."""
        weight, bias, *_ = self.read()
        return self.current(spikes, weight, bias, self.output_shape(tuple(spikes.shape[1:])))

    def _own(self, weight: Tensor, bias_size: int | None, max_norm: float | None) -> None:
        """Make ``weight`` (PyTorch's default initial values) and a zero bias this synapse's parameters."""
        self.weight = nn.Parameter(weight)
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        self.register_parameter("bias", None if bias_size is None else nn.Parameter(torch.zeros(bias_size)))
        if max_norm is not None:
            parametrize.register_parametrization(self, "weight", MaxNorm(max_norm))


def _restored(kind: type[Synapse], state: dict) -> Synapse:
    """A parametrized synapse from its class and its ``__dict__``."""
    synapse = kind.__new__(kind)
    synapse.__dict__ = {**state, "_modules": {**state["_modules"]}}
    restrictions = synapse._modules.pop("parametrizations")
    for name in restrictions:  # registering makes the class and the attribute; what was stored then takes its place
        synapse._parameters[name] = nn.Parameter(torch.empty(0))
        parametrize.register_parametrization(synapse, name, nn.Identity(), unsafe=True)
    synapse.parametrizations = restrictions
    return synapse


def layout(tensor: Tensor) -> torch.memory_format:
    """The memory layout that simulations use: channels last for images, where convolutions run up to 4 times faster."""
    return torch.channels_last if tensor.ndim == 4 else torch.contiguous_format


class _Sliding(Synapse):
    """What has a square window that takes places, ``stride`` apart, on an image with zeros added on each side."""

    def __init__(self, kernel_size: int, stride: int, padding: int, dropout: float) -> None:
        super().__init__(dropout=dropout)
        for name, number, least in (("kernel_size", kernel_size, 1), ("stride", stride, 1), ("padding", padding, 0)):
            if not isinstance(number, int) or number < least:
                raise ValueError(f"{name} must be one whole number of at least {least}, for both axes, not {number!r}")
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def _image_size(self, shape: Shape, channels: int | None = None) -> Shape:
        """Height and width of ``shape``, checked to be an image with that many channels."""
        if len(shape) != 3 or (channels is not None and shape[0] != channels):
            expected = f"({'channels' if channels is None else channels}, height, width)"
            raise ValueError(f"{type(self).__name__} expects an input of shape {expected}, got {shape}")
        return shape[1:]

    def _places(self, size: Shape) -> Shape:
        """How many windows fit along each side of an image."""
        sizes = tuple((n + 2 * self.padding - self.kernel_size) // self.stride + 1 for n in size)
        if min(sizes) < 1:
            raise ValueError(f"an image of {size} is too small for {self}")
        return sizes

    def _missing(self, small: Shape, large: Shape) -> list[int] | None:
        """Rows and columns of an image beyond windows at ``small`` places, or None where these do not fit it."""
        missing = [n - (places - 1) * self.stride + 2 * self.padding - self.kernel_size
                   for n, places in zip(large, small, strict=True)]
        return missing if all(0 <= n < self.stride for n in missing) else None

    def _spread(self, spikes: Tensor, weight: Tensor, bias: Tensor | None, shape: Shape, groups: int = 1) -> Tensor:
        """Transposed convolution, from the places of the window to an image of ``shape``."""
        missing, places = self._missing(spikes.shape[2:], shape[1:]), tuple(spikes.shape[2:])
        if missing is None:
            raise ValueError(f"{self} cannot lead from an image of {places} to one of {tuple(shape[1:])}")
        return F.conv_transpose2d(spikes, weight, bias, self.stride, self.padding, missing, groups)

    def _window(self, **settings: Any) -> Window:
        return Window(kernel=(self.kernel_size,) * 2, stride=self.stride, padding=self.padding, **settings)


class _Convolution(_Sliding):
    """A convolution, or, where it ``spreads``, a transposed one; each is the transpose of the other."""

    spreads: bool

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1,
                 padding: int | None = None, bias: bool = True, dropout: float = 0.0,
                 max_norm: float | None = None) -> None:
        size = kernel_size if isinstance(kernel_size, int) else 0  # what is no number is refused there
        super().__init__(kernel_size, stride, size // 2 if padding is None else padding, dropout)
        self.in_channels, self.out_channels = in_channels, out_channels
        channels = (in_channels, out_channels) if self.spreads else (out_channels, in_channels)
        self._own(torch.empty(*channels, kernel_size, kernel_size), out_channels if bias else None, max_norm)

    def window(self, weight: Tensor, input_shape: Shape, output_shape: Shape) -> Window:
        return self._window(spreads=self.spreads, weight=weight.permute(2, 3, *((0, 1) if self.spreads else (1, 0))))

    def parameter_gradients(self, source: Tensor, weight: Tensor, bias: Tensor | None, error: Tensor,
                            wanted: tuple[bool, bool]) -> tuple[Tensor | None, Tensor | None]:
        # The weight of a transposed one is that of a convolution from target to source: ``<W^T s, d> = <s, W d>``.
        image, places = (error, source) if self.spreads else (source, error)
        return (conv2d_weight(image, weight.shape, places, self.stride, self.padding) if wanted[0] else None,
                error.sum((0, 2, 3)) if wanted[1] else None)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, {self.kernel_size}, stride={self.stride}"


class Conv2d(_Convolution):
    """2-d convolution of ``(batch, in_channels, height, width)``; padded to keep the size (``same``) by default.

    Args:
        in_channels, out_channels, kernel_size, stride: as in ``torch.nn.Conv2d``, whole numbers.
        padding: zeros added on each side; ``kernel_size // 2`` by default.
        bias: add a bias, initially 0, at every step.
        dropout, max_norm: of the current, see :class:`Synapse`; of the weight's Frobenius norm, see :class:`MaxNorm`.
    """

    spreads = False

    def output_shape(self, input_shape: Shape) -> Shape:
        return self.out_channels, *self._places(self._image_size(input_shape, self.in_channels))

    def current(self, spikes: Tensor, weight: Tensor, bias: Tensor | None, output_shape: Shape) -> Tensor:
        return F.conv2d(spikes, weight, bias, self.stride, self.padding)

    def transpose(self, spikes: Tensor, weight: Tensor, input_shape: Shape) -> Tensor:
        return self._spread(spikes, weight, None, input_shape)


class ConvTranspose2d(_Convolution):
    """Transposed 2-d convolution, which enlarges an image ``stride`` times; arguments as for :class:`Conv2d`.

    As a feedback synapse it takes the size of the layer that it feeds, odd sizes included.
    """

    spreads = True

    def output_shape(self, input_shape: Shape) -> Shape:
        return self.out_channels, *(n * self.stride for n in self._image_size(input_shape, self.in_channels))

    def reaches(self, input_shape: Shape, target_shape: Shape) -> bool:
        missing = self._missing(self._image_size(input_shape, self.in_channels), target_shape[1:])
        return target_shape[0] == self.out_channels and missing is not None

    def current(self, spikes: Tensor, weight: Tensor, bias: Tensor | None, output_shape: Shape) -> Tensor:
        return self._spread(spikes, weight, bias, output_shape)

    def transpose(self, spikes: Tensor, weight: Tensor, input_shape: Shape) -> Tensor:
        return F.conv2d(spikes, weight, None, self.stride, self.padding)


class AvgPool2d(_Sliding):
    """Average pooling over windows, ``kernel_size`` apart by default; one that the image does not fill is left out.

    Zeros that ``padding`` adds count in the average.
    """

    weight = bias = None

    def __init__(self, kernel_size: int, *, stride: int | None = None, padding: int = 0, dropout: float = 0.0) -> None:
        super().__init__(kernel_size, kernel_size if stride is None else stride, padding, dropout)
        if 2 * padding > kernel_size:  # a window of zeros alone, which PyTorch refuses
            raise ValueError(f"padding must be at most half of kernel_size, {kernel_size}, not {padding}")

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape[0], *self._places(self._image_size(input_shape))

    def current(self, spikes: Tensor, weight: None, bias: None, output_shape: Shape) -> Tensor:
        return F.avg_pool2d(spikes, self.kernel_size, self.stride, self.padding)

    def transpose(self, spikes: Tensor, weight: None, input_shape: Shape) -> Tensor:
        shares = spikes.new_full((spikes.shape[1], 1, self.kernel_size, self.kernel_size), self.kernel_size**-2)
        return self._spread(spikes, shares, None, input_shape, groups=len(shares))

    def window(self, weight: None, input_shape: Shape, output_shape: Shape) -> Window:
        return self._window(scale=self.kernel_size**-2)

    def extra_repr(self) -> str:
        return f"{self.kernel_size}, stride={self.stride}"


class Linear(Synapse):
    """Fully connected synapse; spikes of any shape ``(batch, ...)`` are flattened to ``(batch, in_features)``.

    Arguments as for ``torch.nn.Linear`` and :class:`Conv2d`.
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True, dropout: float = 0.0,
                 max_norm: float | None = None) -> None:
        super().__init__(dropout=dropout)
        self.in_features, self.out_features = in_features, out_features
        self._own(torch.empty(out_features, in_features), out_features if bias else None, max_norm)

    def output_shape(self, input_shape: Shape) -> Shape:
        if torch.Size(input_shape).numel() != self.in_features:
            raise ValueError(f"Linear expects {self.in_features} input units, got a layer of shape {input_shape}")
        return (self.out_features,)

    def current(self, spikes: Tensor, weight: Tensor, bias: Tensor | None, output_shape: Shape) -> Tensor:
        return F.linear(spikes.flatten(1), weight, bias)

    def transpose(self, spikes: Tensor, weight: Tensor, input_shape: Shape) -> Tensor:
        return (spikes @ weight).unflatten(1, input_shape)

    def window(self, weight: Tensor, input_shape: Shape, output_shape: Shape) -> Window:
        source = input_shape if len(input_shape) == 3 else (self.in_features, 1, 1)
        return Window(kernel=source[1:], weight=weight.reshape(-1, *source).permute(2, 3, 1, 0))

    def parameter_gradients(self, source: Tensor, weight: Tensor, bias: Tensor | None, error: Tensor,
                            wanted: tuple[bool, bool]) -> tuple[Tensor | None, Tensor | None]:
        return error.T @ source.flatten(1) if wanted[0] else None, error.sum(0) if wanted[1] else None

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}"
