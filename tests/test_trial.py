"""The trial that an engine must pass on a device before it becomes the default there, and what happens if it fails."""
import gc
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from modules import FeedbackSNN, engines, notices, synapses
from modules.engines import trial
from modules.engines.dense import DENSE, DenseEngine
from modules.engines.event.engine import EventEngine
from modules.engines.ring import missing
from tests import faults
from tests.processes import REPOSITORY, environment

CPU = torch.device("cpu")
INTERPRETED = environment().get("TRITON_INTERPRET") == "1"


class Suspect(EventEngine):
    """Stands in for the CUDA engine: simulates as the event engine does, or fails in some way from some call on."""

    name = "cuda:tf32"

    def __init__(self, error: Exception | None = None, *, wrong: bool = False, after: int = 0) -> None:
        self.error, self.wrong, self.left, self.calls = error, wrong, after, 0

    def __deepcopy__(self, memo: dict) -> "Suspect":
        return self  # so that calls are counted

    def simulate(self, *arguments, **named):
        self.calls += 1
        if self.calls > self.left and self.error is not None:
            raise self.error
        outcome = super().simulate(*arguments, **named)
        if self.wrong and self.calls > self.left:
            outcome.traces[0][(0,) * outcome.traces[0].ndim] += 1
        return outcome


@pytest.fixture
def suspect(monkeypatch, tmp_path):
    """Puts a suspect in the place of the CUDA engine, and that in the place of the CPU's default."""
    notices.GIVEN.clear()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setitem(engines.FASTEST, "cpu", "cuda")

    def place(*arguments, **named) -> Suspect:
        trial.verdict.cache_clear()
        engines._yielding.cache_clear()
        monkeypatch.setitem(engines._REGISTRY, "cuda:tf32", Suspect(*arguments, **named))
        return engines._REGISTRY["cuda:tf32"]

    yield place
    trial.verdict.cache_clear()
    engines._yielding.cache_clear()


def network(engine: str) -> FeedbackSNN:
    torch.manual_seed(0)
    return FeedbackSNN(input=synapses.Conv2d(2, 3, 3), layers=[synapses.Conv2d(3, 4, 3)], engine=engine, time_step=5,
                       time_step_back=5)


def rates(engine: str) -> torch.Tensor:
    """Firing rates and the gradient for the input, of a call."""
    x = torch.linspace(0, 3, 2 * 2 * 6 * 6).view(2, 2, 6, 6).requires_grad_()
    found = network(engine)(x)
    found.sum().backward()
    return torch.cat([found.detach().flatten(), x.grad.flatten()])


class Watched(DenseEngine):
    """Keeps what it found."""

    def __init__(self) -> None:
        self.counts, self.fired = [], []

    def simulate_forward(self, circuit, x):
        result = super().simulate_forward(circuit, x)
        self.counts.append((circuit.time_step, result.counts))
        return result

    def simulate_backward(self, circuit, gradient, masks):
        result = super().simulate_backward(circuit, gradient, masks)
        self.fired.append(result.fired)
        return result


@pytest.mark.parametrize("case", trial.CASES, ids=lambda case: case.name)
def test_there_is_something_to_compare(case: trial.Case) -> None:
    """In each case all layers fire in both phases, and some units of each pass gradient and some do not."""
    watched = Watched()
    trial.check(case, watched, CPU)
    assert len(watched.counts) == len(watched.fired) == len(case.batches)
    assert (sum(watched.fired) > 0).all()
    for steps, counts in watched.counts:
        for count in counts:
            passing = ((count > 0) & (count < steps)).double().mean()
            assert count.any() and 0.02 < passing < 0.98


def test_the_event_engine_passes() -> None:
    """Run as a person runs it: each case with its verdict and time; status 0."""
    done = subprocess.run([sys.executable, "-m", "modules.engines.trial", "event"], cwd=REPOSITORY, timeout=200,
                          env=environment(), capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stdout + done.stderr
    assert all(f"{case.name:64} passed" in done.stdout for case in trial.CASES)
    assert f"{len(trial.CASES)} of {len(trial.CASES)} cases passed" in done.stdout


@pytest.mark.parametrize("engine, words", [
    ("cuda:fp8", "there is no precision 'fp8'"), ("dense", "dense is what others are compared with"),
    ("cuda", "cuda:tf32 cannot run here: it is for GPUs, and the network is on 'cpu'")])
def test_an_engine_that_cannot_be_tried_is_refused_in_a_sentence(engine, words, monkeypatch, capsys) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(sys, "argv", ["trial", engine, "--device", "cpu"])
    with pytest.raises(SystemExit) as end:
        trial.main()
    assert end.value.code != 0 and words in f"{capsys.readouterr().err} {end.value.code}"


@pytest.mark.parametrize("failing, words", [
    (dict(error=RuntimeError("Failed to find C compiler. Please specify via CC environment variable")),
     "RuntimeError: Failed to find C compiler"),
    (dict(error=torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")), "CUDA out of memory"),
    (dict(error=ZeroDivisionError("in a kernel"), after=7), "ZeroDivisionError: in a kernel"),
    (dict(wrong=True, after=3), "Differs: call 2, backward: .*not close.*Mismatched elements: 1 / "),
])
def test_what_fails_under_auto_leaves_everything_to_dense(failing, words, suspect) -> None:
    """One warning says what failed and how to see more; the engine asked for by name refuses in the same words."""
    engine = suspect(**failing)
    with pytest.warns(UserWarning, match="engine 'auto' takes dense") as caught:
        found = rates("auto")
        assert torch.equal(found, rates("dense")) and torch.equal(found, rates("auto"))
    assert len(caught) == 1
    sentence = str(caught[0].message).partition("cuda:tf32: ")[2]
    assert sentence.startswith("it failed its trial on 'cpu' in the case '")
    assert sentence.endswith("; python -m modules.engines.trial cuda:tf32 shows more")
    with pytest.raises(engines.EngineError, match=words) as refused:
        rates("cuda")
    assert sentence in str(refused.value)
    assert engines.describe("auto", CPU) == "dense"
    assert engine.calls == failing.get("after", 0) + 1 or failing.get("wrong")  # once, and no further than the failure


def test_what_passes_is_used_and_said(suspect, capsys) -> None:
    """Without a warning, but with a word, as it takes time; each process tries once, and none again where a proof is
    kept."""
    engine = suspect()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert engines.describe("auto", CPU) == engines.describe("cuda", CPU) == "cuda:tf32 (proved on this device)"
        tried = engine.calls
        assert tried == 2 * sum(len(case.batches) for case in trial.CASES)
        rates("auto")
        assert engine.calls == tried + 2
    assert capsys.readouterr().err.count("trying the engine cuda:tf32 on 'cpu', once") == 1
    assert engines.describe("dense", CPU) == "dense" and engines.describe(engine, CPU) == "cuda:tf32"
    again = suspect()  # as in another process
    assert engines.describe("cuda", CPU) == "cuda:tf32 (proved on this device)" and again.calls == 0
    assert not capsys.readouterr().err


@pytest.mark.parametrize("spoil", ["renamed", "versions", "unreadable"])
def test_only_a_proof_for_these_versions_counts(spoil, suspect, tmp_path, monkeypatch) -> None:
    """A file of another name or other versions, or in a folder that cannot be used: the trial runs, no harm done."""
    suspect()
    if spoil == "unreadable":
        (tmp_path / "cache").write_text("a file where the folder should be")
    engines.describe("cuda", CPU)
    for proof in (tmp_path / "cache").glob("*/*"):
        assert proof.suffix == ".json"
        if spoil == "renamed":
            proof.rename(proof.with_stem("another"))
    if spoil == "versions":
        monkeypatch.setattr(torch, "__version__", "2.99")
    again = suspect()
    assert engines.describe("cuda", CPU) == "cuda:tf32 (proved on this device)" and again.calls > 0


def test_other_default_settings_change_nothing(suspect) -> None:
    """In another default number format the fast engines would leave the networks to dense, and dense equals dense."""
    suspect(wrong=True)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), pytest.raises(engines.EngineError, match="Differs"):
            engines.select("cuda", CPU)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.backends.cudnn.enabled


def test_a_failure_is_tried_again_by_the_next_process(suspect) -> None:
    """Its cause, such as a missing compiler, may be gone."""
    suspect(RuntimeError("Failed to find C compiler"))
    with pytest.raises(engines.EngineError):
        engines.select("cuda", CPU)
    suspect()
    assert engines.select("cuda", CPU).name == "cuda:tf32"


def test_random_generators_and_memory_are_left_alone() -> None:
    state = torch.get_rng_state()
    assert all(result.error is None for result in trial.run(EventEngine(), CPU))
    assert torch.equal(torch.get_rng_state(), state)
    if missing("triton", "modules.engines.cuda.chain") is None:
        from modules.engines.cuda.loop import Simulation
        gc.collect()
        assert not any(issubclass(type(o), Simulation) for o in gc.get_objects())


def test_out_of_memory_after_the_trial_leaves_the_rest_to_dense(suspect) -> None:
    """As when a large batch does not fit beside what was recorded: one warning, for good, and the same results."""
    trials = 2 * sum(len(case.batches) for case in trial.CASES)
    engine = suspect(torch.OutOfMemoryError("CUDA out of memory"), after=trials + 1)  # in the first backward pass
    with pytest.warns(UserWarning, match="goes on with dense.*cuda:tf32 ran out of memory.*--accumulate") as caught:
        found = rates("auto")
        assert torch.equal(found, rates("auto"))
    assert len(caught) == 1 and engine.calls == trials + 2
    assert engines.describe("auto", CPU).startswith("dense")
    with pytest.raises(torch.OutOfMemoryError):
        rates("cuda")


@pytest.mark.parametrize("error, is_one", [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), True), (MemoryError(), True),
    (RuntimeError("CUDA error: out of memory"), True),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"), True),
    (RuntimeError("sizes do not match"), False), (ValueError("the loss ran out of memory"), False)])
def test_out_of_memory_is_told_from_other_errors(error, is_one) -> None:
    assert engines.out_of_memory(error) is is_one


def test_a_cpu_really_out_of_memory() -> None:
    """PyTorch's own words."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55, dtype=torch.uint8)
    assert engines.out_of_memory(caught.value)


# Of tests.faults, those that the first cases catch; all are tried by ``python -m tests.faults cuda``.
QUICK = ("missing reset", "swapped tap", "skipped step", "stale spikes", "keep mask ignored", "wrong gate, layer",
         "the first layer hears too late", "stale weights", "a kernel that does not compile")

if INTERPRETED:
    def test_the_cuda_engine_passes_interpreted(capsys, monkeypatch) -> None:
        monkeypatch.setattr(sys, "argv", ["trial", "cuda:tf32"])
        with pytest.raises(SystemExit) as end:
            trial.main()
        cases = len(trial.CASES)
        assert not end.value.code and f"{cases} of {cases} cases passed" in capsys.readouterr().out

    @pytest.mark.parametrize("name", QUICK)
    def test_faults_are_caught(name: str, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.syspath_prepend(str(tmp_path))
        result = faults.caught("cuda", name, tmp_path)
        assert result is not None
        assert isinstance(result.error, trial.Differs) != (name == "a kernel that does not compile")
else:
    def test_under_the_interpreter() -> None:
        """The tests that are marked so, in a process of their own."""
        done = subprocess.run([sys.executable, "-m", "pytest", "-q", __file__, "-k", "interpreted or faults"],
                              cwd=REPOSITORY, capture_output=True, text=True, timeout=500,
                              env=environment(TRITON_INTERPRET="1"))
        assert done.returncode == 0 and f"{1 + len(QUICK)} passed" in done.stdout, done.stdout[-5000:]

    def test_faults_of_the_event_engine_are_caught(tmp_path: Path, monkeypatch) -> None:
        monkeypatch.syspath_prepend(str(tmp_path))
        assert isinstance(faults.caught("event", "missing reset", tmp_path).error, trial.Differs)


def test_every_fault_changes_one_place() -> None:
    """A fault whose text is no longer in the sources would test nothing."""
    for kind, table in faults.PLACES.items():
        sources = [file.read_text() for file in (Path(engines.__file__).parent / kind).glob("*.py")]
        assert {name: 1 for name in table} == {name: sum(s.count(old) for s in sources)
                                               for name, (old, _) in table.items()}
    assert DENSE.name == "dense" and set(QUICK) <= set(faults.CUDA)
