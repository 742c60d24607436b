"""Faults for the trial to catch: each is a change of one place in a copy of an engine's sources.

    python -m tests.faults cuda | event [PART OF A NAME ...]     tries all or some, prints which case catches which

With ``cuda``, under Triton's interpreter: set ``TRITON_INTERPRET=1``.
"""
import importlib
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch

from modules import engines
from modules.engines import trial
from modules.engines.interface import Engine

# Name: what stands in the sources, once, and what takes its place.
CUDA = {
    "wrong comparison, up": ("potential >= neurons.upper", "potential > neurons.upper"),
    "wrong comparison, down": ("potential <= neurons.lower", "potential < neurons.lower"),
    "missing reset": ("    potential -= neurons.quantum * spike\n", ""),
    "reset of up spikes only": ("neurons.quantum * spike", "neurons.quantum * up"),
    "dropped leak of potentials": ("potential *= neurons.leak", "pass"),
    "dropped leak of traces, layer": ("trace * neurons.leak + spike, mask=inside", "trace + spike, mask=inside"),
    "dropped leak of traces, neurons": ("else trace * neurons.leak)", "else trace)"),
    "spikes missed in traces, layer": ("tl.load(neurons.traces + unit, mask=fires, other=0) + spike", "spike"),
    "spikes missed in traces, neurons": ("trace = spike + (", "trace = ("),
    "traces that leak change only where units fire": ("neurons.leak is None:\n        tl.store",
                                                      "True:\n        tl.store"),
    "count missed, layer": ("tl.load(neurons.counts + unit, mask=fires, other=0) + spike", "spike"),
    "count missed, neurons": ("        count += spike\n", ""),
    "counts not read": ("else tl.load(neurons.counts + unit, mask=inside, other=0)", "else trace"),
    "fired: down spikes missed": ("tl.sum(up + down, axis=1)", "tl.sum(up, axis=1)"),
    "fired: last quarter only": ("        number += fired\n    tl.atomic", "        number = fired\n    tl.atomic"),
    "fired: last step only": ("        number += fired\n    tl.store", "        number = fired\n    tl.store"),
    "potentials not stored, layer": ("        tl.store(neurons.potentials + unit, potential, mask=inside)\n        add",
                                     "        add"),
    "potentials not stored, neurons": ("    tl.store(neurons.potentials + unit, potential, mask=inside)\n    tl",
                                       "    tl"),
    "swapped tap": ("tap_y, tap_x = first_row", "tap_x, tap_y = first_row"),
    "tap mirrored where it spreads": ("(x + window.padding - tap_x) //", "(x - window.padding + tap_x) //"),
    "taps of another remainder": ("(column + window.padding) % stride", "column % stride"),
    "every tap, where it spreads": ("tap % columns * apart", "tap % columns"),
    "pixels of one remainder only": ("apart**2 * triton.cdiv", "triton.cdiv"),
    "pixels side by side, where it spreads": ("place % columns * stride + column", "place % columns + column"),
    "outside of an image of odd size": ("(y < target.height) & (x < target.width)", "(y < target.height)"),
    "stride left out": ("x * window.stride - window.padding", "x - window.padding"),
    "wrong border, left": ("            met = (from_y >= 0) & (from_x >= 0)\n", "            met = from_y >= 0\n"),
    "wrong border, right": ("(from_x < arriving.width) & ", ""),
    "wrong border, below": ("(from_y < arriving.height) & ", ""),
    "wrong border, left, where it spreads": (" & (x + window.padding >= tap_x)", ""),
    "sample of the wrong size": ("sample * arriving.height", "sample * target.height"),
    "bias left out": ("synapse.bias is not None", "False"),
    "pooling not averaged": ("total += synapse.scale * ", "total += "),
    "second term of weights left out": ("synapse.rest is not None", "False"),
    "wrong block of source channels": ("product % blocks * tile.source", "0 * product"),
    "one block of source channels less": ("tl.cdiv(arriving.channels, tile.source)",
                                          "tl.maximum(1, arriving.channels // tile.source)"),
    "wrong edge of pixels, neurons": ("tl.program_id(0) * tile.pixels", "tl.program_id(0) * (tile.pixels + 1)"),
    "wrong edge of pixels, product": ("% blocks * tile.pixels", "% blocks * (tile.pixels + 1)"),
    "wrong edge of target channels, product": ("(pixel, tl.program_id(1) * tile.channels",
                                               "(pixel, tl.program_id(1) * (tile.channels + 1)"),
    "wrong edge of target channels, neurons": ("channel = tl.program_id(1) * tile.channels",
                                               "channel = tl.program_id(1) * (tile.channels + 1)"),
    "wrong edge of target channels, layer": ("tl.program_id(1) * tile.channels + part",
                                             "tl.program_id(1) * (tile.channels - 1) + part"),
    "wrong edge of a quarter": ("part * QUARTER + tl.arange", "part * (QUARTER - 1) + tl.arange"),
    "quarters out of order": ("parts = (first, second, third, fourth)", "parts = (first, third, second, fourth)"),
    "keep mask ignored": ("if keep is not None", "if False"),
    "keep mask on the outside too": ("""        if keep is not None:
            total *= tl.load(keep + unit, mask=inside, other=0).to(tl.float32)
        if current is not None:
            total += tl.load(current + unit, mask=inside, other=0)
""", """        if current is not None:
            total += tl.load(current + unit, mask=inside, other=0)
        if keep is not None:
            total *= tl.load(keep + unit, mask=inside, other=0).to(tl.float32)
"""),
    "current from outside left out": ("            total += tl.load(current + unit, mask=inside, other=0)\n",
                                      "            total += 0\n"),
    "wrong gate, layer": ("spike * tl.load(sending.gate + unit, mask=inside, other=0).to(tl.float32)", "spike"),
    "wrong gate, neurons": ("send(sending, spike * gate", "send(sending, spike"),
    "a step unheard": ("(last >= since)", "(last > since)"),
    "the first layer hears too late": ("step if current is None else step - 1", "step"),
    "a step unheard, product": ("since = step + pixel //", "since = step + 1 + pixel //"),
    "only the first sample of a block heard": ("tl.max((last >= since)", "tl.min((last >= since)"),
    "down spikes not said": ("tl.max(tl.abs(sent), axis=1)", "tl.max(sent, axis=1)"),
    "said a step too early": ("pixel // area, step + ahead)", "pixel // area, step + ahead - 1)"),
    "said for the wrong step": ("ahead * (target.pixels // area) + pixel // area", "pixel // area"),
    "current of the wrong frame, neurons": ("current + tl.cast(ahead, tl.int64) * frame", "current"),
    "spikes of the wrong step": ("tl.cast(ahead, tl.int64) * target.pixels * target.channels + unit", "unit"),
    "current of the wrong frame, layer": ("current[step if len(current) > 1 else 0]", "current[0]"),
    "one current for all frames": ("frame = [], self.potentials[layer].numel()", "frame = [], 0"),
    "skipped step": ("for step in range(length):", "for step in range(length - 1):"),
    "skipped step, chain": ("min(STEPS, length - first)", "min(STEPS, length - first) - (first > 0)"),
    "steps too many, chain": ("min(STEPS, length - first)", "STEPS"),
    "skipped layer": ("for layer in range(len(self.potentials)):\n                self.launch(",
                      "for layer in range(max(1, len(self.potentials) - 1)):\n                self.launch("),
    "buffers of the last layer not in turn": ("(parity + step) % 2", "parity"),
    "the first layer reads what is being written": ("last + 1 - parity", "last + parity"),
    "nothing at rest": ("            tensor.zero_()\n", "            pass\n"),
    "stale potentials": ("[*self.potentials, *self.traces", "[*self.traces"),
    "stale traces": ("*self.potentials, *self.traces, ", "*self.potentials, "),
    "stale counts": ("*self.traces, *self.counts, ", "*self.traces, "),
    "stale spikes": ("*self.spikes, self.fired", "self.fired"),
    "stale numbers of spikes": ("self.fired, self.said]", "self.said]"),
    "stale weights": ("stored.copy_(term.mT)", "stored.copy_(stored if self.currents else term.mT)"),
    "stale biases": ("own.copy_(bias)", "own.copy_(own if self.currents else bias)"),
    "stale gates": ("own.copy_(pixel_by_pixel(gate))", "own.copy_(own if self.currents else pixel_by_pixel(gate))"),
    "stale keep mask": ("self.keep.copy_(pixel_by_pixel(ring.keep))",
                        "self.keep.copy_(self.keep if self.currents else pixel_by_pixel(ring.keep))"),
    "stale current": ("            self.currents[frames].copy_(",
                      "            done == 0 and self.currents[frames].copy_("),
    "results overwritten by the next call": ("to_layer(own, shape).clone()", "to_layer(own, shape)"),
    "buffers of another batch size": ("len(ring.gates[0]), ring.keep is None", "ring.keep is None"),
    "buffers of another network": ("tuple(ring.shapes), geometry, ", "tuple(ring.shapes), "),
    "constants of another network": ("ring.upper, ring.lower, ring.quantum, ring.leak)", "ring.lower)"),
    "weights rounded to one term": ("[high, (weight - high).bfloat16().float()]", "[high, high * 0]"),
    "a layer that is heard does not send": ("% len(self.ring.routes)] is not None", "% len(self.ring.routes)] is None"),
    "a kernel that does not compile": ("total = tl.zeros(", "total = tl.nothing("),
}
EVENT = {
    "wrong comparison, up": ('at_least = _comparison(">=")', 'at_least = _comparison(">")'),
    "wrong comparison, down": ('at_most = _comparison("<=")', 'at_most = _comparison("<")'),
    "missing reset": ("    potential = add_if(potential, up, -plan.quantum)\n", ""),
    "missing reset of down spikes": ("potential = add_if(potential, down, plan.quantum)", "pass"),
    "dropped leak": ("potential = potential * plan.leak", "pass"),
    "bias left out": ("total = total + load(plan.bias, L.bias + channel, width)", "total = total"),
    "bias left out, chain": ("arriving = arriving + load(plan.bias, L.bias + channel, lanes)", "pass"),
    "current from outside left out, chain": ("arriving = arriving + load(current, outside, lanes)", "pass"),
    "wrong gate, chain": ("add_if(up, spikes & gate, 1 << step)", "add_if(up, spikes, 1 << step)"),
    "wrong gate of down spikes, chain": ("add_if(down, negative & gate, 1 << step)",
                                         "add_if(down, negative, 1 << step)"),
    "down spikes added": ("row = row * at(plan.signs, spike & 1)", "pass"),
    "keep mask ignored": ("total = add_if(potential, load_bits(plan.keep, gates + pixel * line, width), total)",
                          "total = potential + total"),
    "keep mask ignored, pool": ("if not L.masked or at(plan.keep", "if True or at(plan.keep"),
    "current from outside left out": ("total = total + load(current, frame + pixel * L.padded, width)", "pass"),
    "wrong gate": ("emit(state.spikes, up & gate,", "emit(state.spikes, up,"),
    "count missed": ("load(state.counts, unit, width), up | down, 1)", "load(state.counts, unit, width), down, 1)"),
    "fired: down spikes missed": ("fired += count(up | down)", "fired += count(up)"),
    "units beyond a threshold forgotten": ("|= beyond != 0", "|= 0"),
    "stale lists": ("if not at(pointers, pointer(source, window.row, source.width)):", "if False:"),
    "lists of the wrong step": ("step - (source_layer >= layer)", "step"),
    "wrong tap": ("2 * (column.shift + window.shift)", "2 * column.shift"),
    "pooling adds down spikes": ("plan.pool[layer] * at(plan.signs, spike & 1)", "plan.pool[layer]"),
    "a step after one beyond a threshold forgotten, chain": ("left |= (ONE << np.uint64(step + 1)) & every", "pass"),
    "units beyond a threshold forgotten, chain": ("left |= ONE  # from before", "pass"),
    "what arrived is not cleared, chain": ("store(desk.arriving, step * lanes, zero)", "pass"),
    "steps of the wrong columns, chain": ("pointer(source_of(S, 0), plan.row_windows[w].row, column.after)",
                                          "pointer(source_of(S, 0), plan.row_windows[w].row, column.first + 1)"),
    "lists of the wrong step, chain": ("return Source(step * room, STEPS * room, step,",
                                       "return Source(0 * room, STEPS * room, step,"),
    "pooling adds down spikes, chain": ("meets(down, ONE << np.uint64(step)), -amount)",
                                        "meets(down, ONE << np.uint64(step)), amount)"),
}
PLACES = {"cuda": CUDA, "event": EVENT}


def faulty(kind: str, name: str, folder: Path) -> Engine:
    """An engine with a fault, from a copy of its package in ``folder``, which is on ``sys.path``."""
    old, new = PLACES[kind][name]
    package = f"faulty_{kind}_{list(PLACES[kind]).index(name)}"
    original = Path(engines.__file__).parent / kind
    shutil.copytree(original, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    found = 0
    for file in (folder / package).glob("*.py"):
        text = file.read_text().replace(f"modules.engines.{kind}", package)
        found += text.count(old)
        file.write_text(text.replace(old, new))
    assert found == 1, f"'{old}' stands {found} times in the sources of {kind}"
    importlib.invalidate_caches()
    module = importlib.import_module(f"{package}.engine")
    return module.CudaEngine("bf16x2") if kind == "cuda" else module.EventEngine()


def caught(kind: str, name: str, folder: Path) -> trial.Result | None:
    """The first case of the trial that an engine with a fault fails, or None."""
    results = trial.run(faulty(kind, name, folder), torch.device("cpu"))
    return next((result for result in results if result.error is not None), None)


def main(kind: str, *parts: str) -> bool:
    """Try the faults whose names contain one of ``parts``, or all; say of each what caught it, and whether all were."""
    tried = [name for name in PLACES[kind] if not parts or any(part in name for part in parts)]
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        sys.path.insert(0, folder)
        for name in tried:
            start, result = time.perf_counter(), caught(kind, name, Path(folder))
            missed += [name] if result is None else []
            what = "MISSED" if result is None else \
                f"{result.case.name} | {' '.join(f'{type(result.error).__name__}: {result.error}'.split())[:150]}"
            print(f"| {name} | {what} | {time.perf_counter() - start:.1f} s", flush=True)
    print(f"{len(tried) - len(missed)} of {len(tried)} faults caught")
    return bool(tried) and not missed


if __name__ == "__main__":
    sys.exit(not main(*sys.argv[1:]))
