"""Variational dropout whose masks are a function of each sample's key, not of a generator's state.

Whoever knows the key of a sample knows its masks: on any device, in any batch, in any process, after any interruption.
"""
import torch
from torch import Tensor

from modules.synapses import Shape, layout

GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # odd, with its bits spread, so that multiples of it are far apart

IN_CACHE = 2**16  # units whose masks a CPU computes at a time


def draw_keys(batch: int, device: torch.device) -> Tensor:
    """One random key for each sample, from the global generator: int64 ``(batch,)``."""
    return torch.randint(2**63 - 1, (batch,)).to(device)


def dropout_mask(keys: Tensor, shape: Shape, *, p: float, stream: int, dtype: torch.dtype) -> Tensor:
    """Mask of 0, with probability ``p``, and ``1/(1-p)``, ``(batch, *shape)`` in the memory layout of simulations.

    Args:
        keys: of the samples, int64 ``(batch,)``, any numbers.
        stream: number of the mask among those of a sample; masks of two streams are unrelated.
    """
    units = torch.arange(torch.Size(shape).numel(), dtype=torch.int32, device=keys.device).view(1, *shape)
    units = _mix_(units).contiguous(memory_format=layout(units))
    own = torch.full_like(keys, stream).mul_(GOLDEN).add_(keys)
    low, high = own.view(torch.int32).view(-1, 2, *[1] * len(shape)).unbind(1)
    threshold = round(p * 2**32) - 2**31  # of a uniform int32
    mask = torch.empty((len(keys), *shape), dtype=dtype, device=keys.device, memory_format=layout(units))
    # A CPU is faster with few samples at a time, as what they need stays in its cache.
    size = max(1, IN_CACHE // max(1, units.numel()) if keys.device.type == "cpu" else len(keys))
    for part, low_bits, high_bits in zip(mask.split(size), low.split(size), high.split(size)):
        torch.ge(_mix_((units ^ low_bits).mul_(high_bits | 1)), threshold, out=part)
    return mask.mul_(1 / (1 - p))


def _mix_(bits: Tensor) -> Tensor:
    """Scramble int32 numbers in place, one to one, so that every bit depends on all (C. Wellons's lowbias32, 2018)."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32)):
        bits ^= (bits >> shift).bitwise_and_(2 ** (32 - shift) - 1)  # the shift of a signed number copies its sign
        bits *= factor
    return bits.bitwise_xor_((bits >> 16).bitwise_and_(0xFFFF))
