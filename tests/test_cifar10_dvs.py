"""CIFAR10-DVS from the server to the batch: downloads that fail, conversions that are interrupted, the split."""
import errno
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from data import cifar10_dvs, dvs_convert, dvs_files, frames
from data.aedat import read_aedat
from data.cifar10_dvs import CIFAR10DVS
from data.dvs_convert import cache_folder, convert
from data.dvs_files import CLASSES, FILES, FOLDER, fetch, find_recordings
from data.frames import clean_transform, events_to_frames, reference_transform
from tests.processes import environment
from tests.recordings import make_dataset
from utils.errors import UserError

SETTINGS = {"frames": 3, "transform": "reference"}
REPOSITORY = Path(__file__).parents[1]

pytestmark = pytest.mark.filterwarnings("ignore:.*of 10000 recordings")


@pytest.fixture(scope="session")
def recorded(tmp_path_factory) -> Path:
    """Two training recordings and a test recording of each class, extracted, and their frames."""
    root = tmp_path_factory.mktemp("recorded")
    make_dataset(root, train=2, test=1, events=500)
    convert(root, **SETTINGS)
    return root


@pytest.fixture
def root(recorded, tmp_path) -> Path:
    """A copy of ``recorded`` to spoil."""
    return shutil.copytree(recorded, tmp_path / "raw")


def frames_of(root: Path) -> dict[str, bytes]:
    """Contents of all files of frames."""
    return {path.name: path.read_bytes() for path in cache_folder(root, **SETTINGS).glob("*.npy")}


def pack(root: Path, name: str) -> bytes:
    """Put the extracted recordings of a class into a zip, arranged as the published ones are."""
    folder = root / FOLDER / name
    with ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, f"{name}/{path.name}")
    shutil.rmtree(folder)
    return folder.with_suffix(".zip").read_bytes()


def publish(monkeypatch, contents: dict[str, bytes]) -> None:
    """Make the md5 of these zips the published one."""
    for name, content in contents.items():
        monkeypatch.setitem(FILES, name, (FILES[name][0], hashlib.md5(content).hexdigest()))


@pytest.fixture
def serve(monkeypatch) -> Iterator[Callable[[dict[str, bytes]], list[str]]]:
    """Start a server of answers by path, let the download use its folders 'a' and 'b', and list what is asked for."""
    asked, answers = [], {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = answers.get(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *args) -> None:
            """Keep the tests' output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(dvs_files, "ADDRESSES", (address + "/a/{}", address + "/b/{}"))
    yield lambda given: answers.update(given) or asked
    server.shutdown()
    server.server_close()


# The dataset


def test_items(recorded):
    """Items are the transformed frames of the right recording, as float32 in [0, 1], with its label."""
    for transform, make, scale in (("reference", reference_transform, 255), ("clean", clean_transform, 1)):
        data = CIFAR10DVS(recorded, train=True, frames=3, transform=transform, download=False)
        assert len(data) == 20 and data.classes == list(CLASSES) and data.targets == sorted([*range(10)] * 2)
        frames, label = data[7]
        counts = events_to_frames(read_aedat(recorded / FOLDER / "cat" / "cifar10_cat_1.aedat"), 3)
        assert frames.dtype == torch.float32 and frames.shape == (3, 2, 48, 48) and label == 3
        assert torch.equal(frames, torch.from_numpy(make(counts)).float() / scale)
        assert 0 < frames.max() <= 1 and frames.min() >= 0


def test_split_goes_by_number(root):
    """Numbers 0-899 train and 900-999 test in numeric order, though '1000' < '899' and '99' > '900' as words."""
    cache = cache_folder(root, **SETTINGS)
    for number in (2, 10, 99, 100, 899, 900, 950, 999):
        for folder, suffix in ((root / FOLDER / "cat", "aedat"), (cache, "npy")):
            source = folder / f"cifar10_cat_1.{suffix}"
            target = folder / f"cifar10_cat_{number}.{suffix}"
            if not target.exists():
                shutil.copy(source, target)
    numbers = [[int(path.stem.rpartition("_")[2]) for path in data.paths if "_cat_" in path.name]
               for data in (CIFAR10DVS(root, train=train, download=False, **SETTINGS) for train in (True, False))]
    assert numbers == [[0, 1, 2, 10, 99, 100, 899], [900, 950, 999]]


def test_empty_part(root):
    """A part without recordings is refused, not given as a dataset of length 0."""
    for path in (root / FOLDER).rglob("*_900.*"):
        path.unlink()
    assert len(CIFAR10DVS(root, train=True, download=False, **SETTINGS)) == 20
    with pytest.raises(ValueError, match="no test recordings, numbers 900-999"):
        CIFAR10DVS(root, train=False, download=False, **SETTINGS)


def test_subset_is_announced(recorded):
    """A dataset that is not complete says so."""
    with pytest.warns(UserWarning, match="holds 30 of 10000 recordings"):
        CIFAR10DVS(recorded, train=True, download=False, **SETTINGS)


def test_loader_workers(recorded):
    """Items come through the workers of a loader as they come without them."""
    data = CIFAR10DVS(recorded, train=False, download=False, **SETTINGS)
    (frames, labels), = DataLoader(data, batch_size=10, num_workers=2)
    assert labels.tolist() == list(range(10)) and torch.equal(frames, torch.stack([data[i][0] for i in range(10)]))


def test_cached_dataset_reads_no_recording(root, monkeypatch):
    """With all frames there, a dataset is ready at once: nothing is converted, nor any recording read."""
    for path in (root / FOLDER).rglob("*.aedat"):
        path.write_bytes(b"spoilt")
    start = time.monotonic()
    assert len(CIFAR10DVS(root, train=True, download=False, **SETTINGS)) == 20
    assert time.monotonic() - start < 0.5


def test_frames_of_another_version_of_a_transform(root, monkeypatch):
    """Who edits a transform does not train on what it made before; older folders are taken as they are."""
    def other(counts, size=48):
        return 0 * clean_transform(counts, size)

    settings = {**SETTINGS, "transform": "clean"}
    CIFAR10DVS(root, train=True, download=False, **settings)
    CIFAR10DVS(root, train=False, download=False, **settings)
    monkeypatch.setitem(frames.TRANSFORMS, "clean", other)
    with pytest.raises(UserError, match="holds frames from before the transform 'clean' was changed: delete it, or na"):
        CIFAR10DVS(root, train=True, download=False, **settings)
    (cache_folder(root, **settings) / dvs_convert.MARK).write_bytes(b"")  # what a full disk once left
    CIFAR10DVS(root, train=True, download=False, **settings)
    (cache_folder(root, **settings) / dvs_convert.MARK).unlink()
    CIFAR10DVS(root, train=True, download=False, **settings)


def test_recordings_may_go_once_all_is_converted(root, monkeypatch):
    """Complete frames of a class need neither its recordings nor a download; incomplete ones do."""
    for name in CLASSES:
        shutil.rmtree(root / FOLDER / name)
    with pytest.raises(ValueError, match="10 files of CIFAR10-DVS are missing"):
        CIFAR10DVS(root, train=True, download=False, **SETTINGS)
    monkeypatch.setattr(cifar10_dvs, "PER_CLASS", 3)
    assert len(CIFAR10DVS(root, train=True, download=False, **SETTINGS)) == 20


@pytest.mark.parametrize("spoil", [lambda whole: whole[:-100], lambda whole: whole[:40], lambda whole: b"",
                                   lambda whole: b"\0" * len(whole), lambda whole: whole.replace(b"(3, 2,", b"(2, 3,"),
                                   lambda whole: whole.replace(b"(3, 2,", b"((3, 2"),
                                   lambda whole: whole.replace(b"(3, 2,", b"(03, 2"),
                                   lambda whole: b"PK\3\4" + whole[4:]])
def test_damaged_frames_are_named(root, spoil):
    """A damaged file of frames is named when it is opened, with what to do."""
    data = CIFAR10DVS(root, train=True, download=False, **SETTINGS)
    data.paths[4].write_bytes(spoil(data.paths[4].read_bytes()))
    with pytest.raises(ValueError, match="cifar10_bird_0.npy .*delete it and run again"):
        data[4]


@pytest.mark.parametrize("wrong, message", [({"transform": "blur"}, "choose one of reference, clean"),
                                            ({"frames": 0}, "at least 1")])
def test_wrong_settings(recorded, wrong, message):
    """Settings that make no sense are refused before anything is downloaded or converted."""
    with pytest.raises(ValueError, match=message):
        CIFAR10DVS(recorded, train=True, **SETTINGS | wrong)


# Folders


def nest(root: Path) -> Path:
    """Zips that were extracted, each into a folder of its class."""
    for name in CLASSES:
        (root / FOLDER / name).rename(root / "inner")
        (root / FOLDER / name).mkdir()
        (root / "inner").rename(root / FOLDER / name / name)
    return root


def name_itself(root: Path) -> Path:
    """The flag names the folder of the dataset."""
    return root / FOLDER


def spell(root: Path) -> Path:
    """The folder has the name that other programs give it."""
    (root / FOLDER).rename(root / "CIFAR10DVS")
    return root


def spell_and_name_itself(root: Path) -> Path:
    """Both at once."""
    return spell(root) / "CIFAR10DVS"


def extract(root: Path) -> Path:
    """Another library's folder, which keeps extracted recordings on a level of their own."""
    (root / FOLDER).rename(root / "extract")
    (root / "download").mkdir()
    return root


def extract_inside(root: Path) -> Path:
    """The same within the folder of the dataset."""
    (root / FOLDER).rename(root / "extract")
    (root / FOLDER).mkdir()
    (root / "extract").rename(root / FOLDER / "extract")
    return root


def flatten(root: Path) -> Path:
    """All recordings in one folder."""
    for name in CLASSES:
        for path in (root / FOLDER / name).iterdir():
            path.rename(root / FOLDER / path.name)
        (root / FOLDER / name).rmdir()
    return root


@pytest.mark.parametrize("rearrange", [nest, name_itself, spell, spell_and_name_itself, extract, extract_inside,
                                       flatten])
def test_layouts(root, recorded, monkeypatch, rearrange):
    """Recordings are found in the layouts that people have, and nothing is downloaded again."""
    shutil.rmtree(cache_folder(root, **SETTINGS))
    monkeypatch.setattr(dvs_files, "urlopen", lambda *_, **__: pytest.fail("something was downloaded"))
    path = rearrange(root)
    found = find_recordings(path)
    assert found.keys() == find_recordings(recorded).keys()
    for name in CLASSES[1:]:  # one class stands for all
        for key in [key for key in found if key[0] == name]:
            found[key].path.unlink()
    whole = {name: frames for name, frames in frames_of(recorded).items() if CLASSES[0] in name}
    convert(path, workers=1, **SETTINGS)
    assert frames_of(path) == whole


def test_frames_stay_where_they_were_made(root):
    """Frames of a dataset are found by the name of the folder above and by its own name alike."""
    assert cache_folder(root / FOLDER, **SETTINGS) == cache_folder(root, **SETTINGS)
    assert len(CIFAR10DVS(root / FOLDER, train=True, download=False, **SETTINGS)) == 20
    above = root.rename(root.with_name("CIFAR10-DVS"))
    assert cache_folder(above, **SETTINGS).parent == above / FOLDER


@pytest.mark.parametrize("other", ["events_np/cat/cifar10_cat_3.npz", "cat/train/cifar10_cat_3.mat",
                                   "CIFAR10-DVS.tar.gz", "cifar10_dvs.zip"])
@pytest.mark.parametrize("download", [True, False])
def test_other_forms_are_named(tmp_path, monkeypatch, other, download):
    """Files of the dataset in a form that cannot be read are named, with what is expected, and not downloaded anew."""
    monkeypatch.setattr(dvs_files, "urlopen", lambda *_, **__: pytest.fail("something was downloaded"))
    (tmp_path / other).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / other).write_bytes(b"something")
    with pytest.raises(UserError) as refusal:
        CIFAR10DVS(tmp_path, train=True, download=download)
    assert str(tmp_path / other) in str(refusal.value) and str(tmp_path / FOLDER) in str(refusal.value)


def test_strangers_do_not_matter(root):
    """Files of other datasets beside, even under the names of classes, are neither recordings nor in the way."""
    for place in (root, root / "pets"):
        (place / "cat").mkdir(parents=True)
        (place / "cat" / "cat_1.png").write_bytes(b"")
        (place / "dog.zip").write_bytes(b"no zip")
    assert dvs_files.find_other_forms(root) is None
    assert len(find_recordings(root)) == 30


def test_home(root, monkeypatch):
    """``~`` is the home folder, for recordings and for frames."""
    monkeypatch.setenv("HOME", str(root.parent))
    monkeypatch.chdir(root)
    assert find_recordings("~/raw").keys() == find_recordings(root).keys()
    for path in (root / FOLDER).glob("*/*_[01].aedat"):
        path.unlink()
    convert("~/raw", cache="~/frames", workers=1, **SETTINGS)
    data = CIFAR10DVS("~/raw", train=False, download=False, cache="~/frames", **SETTINGS)
    assert len(data) == 10 and data.paths[0].is_relative_to(root.parent / "frames")
    assert not list(root.glob("~*"))


def test_recordings_that_may_only_be_read(root, monkeypatch, tmp_path):
    """Where the recordings' folder cannot be written, frames go where they are told to; without a word of it, said."""
    shutil.rmtree(cache_folder(root, **SETTINGS))
    whole = pack(root, "cat")
    publish(monkeypatch, {"cat": whole})
    for name in CLASSES:
        if name != "cat":
            shutil.rmtree(root / FOLDER / name)

    def below_root(call: Callable) -> Callable:
        def refuse(path: object, *args: object, **settings: object) -> object:
            if Path(path).is_relative_to(root):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return call(path, *args, **settings)
        return refuse

    monkeypatch.setattr(os, "mkdir", below_root(os.mkdir))
    monkeypatch.setattr(os, "open", below_root(os.open))
    before = sorted(root.rglob("*"))
    with pytest.raises(UserError, match="cannot write frames to .*Read-only file system.*--frames-path"):
        convert(root, **SETTINGS)
    monkeypatch.setattr(cifar10_dvs, "PER_CLASS", 0)  # nothing to download
    data = CIFAR10DVS(root, train=True, cache=tmp_path / "frames", **SETTINGS)
    assert len(data) == 2 and sorted(root.rglob("*")) == before
    with pytest.raises(UserError, match="cannot write recordings to .*--path"):
        fetch(root, ["dog"])


# Download


def test_good_download(root, serve, monkeypatch):
    """The second address is tried where the first fails; a zip is read as it is, and gives the frames of its files."""
    before, archive = frames_of(root), pack(root, "cat")
    (root / FOLDER / "cat.zip").unlink()
    publish(monkeypatch, {"cat": archive})
    asked = serve({f"/b/{FILES['cat'][0]}": archive})
    shutil.rmtree(cache_folder(root, **SETTINGS))
    data = CIFAR10DVS(root, train=True, **SETTINGS)
    assert len(data) == 20 and frames_of(root) == before
    assert asked == [f"/{folder}/{FILES['cat'][0]}" for folder in "ab"]
    assert (root / FOLDER / "cat.zip").read_bytes() == archive
    CIFAR10DVS(root, train=False, **SETTINGS)
    assert len(asked) == 2


@pytest.mark.parametrize("body, reason", [(b"", "empty"), (b"\n<!DOCTYPE html><html></html>", "an HTML page"),
                                          (b"PK and so on", "12 bytes of another md5"), (None, "404")])
def test_bad_downloads(root, serve, body, reason):
    """A server's empty, HTML or wrong answer is kept nowhere; what to fetch by hand, and where to, is told."""
    shutil.rmtree(root / FOLDER / "cat")
    shutil.rmtree(root / FOLDER / "dog")
    files = sorted((root / FOLDER).iterdir())
    asked = serve({} if body is None else {f"/{folder}/{FILES['cat'][0]}": body for folder in "ab"})
    with pytest.raises(ValueError) as refusal:
        fetch(root, ["cat", "dog"])
    message = str(refusal.value)
    assert len(asked) == 4 and reason in message and str(root / FOLDER) in message
    for name in ("cat", "dog"):
        file_id, md5 = FILES[name]
        assert f"{name}.zip" in message and md5 in message and f"/a/{file_id}" in message and f"/b/{file_id}" in message
    assert sorted({*(root / FOLDER).iterdir()} - {root / FOLDER / ".lock"}) == files


def test_no_network(tmp_path, monkeypatch):
    """Without a network the download ends soon, asking each unreachable server only once."""
    refused = "http://127.0.0.1:9/{}"
    monkeypatch.setattr(dvs_files, "ADDRESSES", (refused,))
    start = time.monotonic()
    with pytest.raises(ValueError, match="10 files of CIFAR10-DVS could not be downloaded") as refusal:
        CIFAR10DVS(tmp_path, train=True)
    assert time.monotonic() - start < 5
    assert str(refusal.value).split("Reasons:")[1].count("127.0.0.1") == 1


# Zips put there by hand


def test_own_zip_is_checked_once(root, monkeypatch):
    """A zip put there by hand is compared with its md5, but not again as long as it stays as it was noted."""
    publish(monkeypatch, {"cat": pack(root, "cat")})
    dvs_files.verify(root / FOLDER / "cat.zip", root / "missing")
    checked, file_digest = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, digest: checked.append(file) or file_digest(file, digest))
    cached = cache_folder(root, **SETTINGS) / "cifar10_cat_0.npy"
    for checks, touch in ((1, False), (1, False), (2, True)):
        cached.unlink()
        if touch:
            os.utime(root / FOLDER / "cat.zip", (0, 0))
        convert(root, workers=1, **SETTINGS)
        assert len(checked) == checks and cached.exists()


@pytest.mark.parametrize("spoil", [lambda whole: whole[:len(whole) // 2], lambda whole: b"<html></html>",
                                   lambda whole: whole[:200] + b"!" + whole[201:], lambda whole: b"PK\5\6" + bytes(18)])
def test_damaged_zip_is_named(root, monkeypatch, spoil):
    """A zip that is cut off, altered or something else is named, and left for its owner to replace."""
    whole = pack(root, "cat")
    publish(monkeypatch, {"cat": whole})
    (root / FOLDER / "cat.zip").write_bytes(spoil(whole))
    (cache_folder(root, **SETTINGS) / "cifar10_cat_0.npy").unlink()
    with pytest.raises(ValueError, match="cat.zip is damaged") as refusal:
        CIFAR10DVS(root, train=True, **SETTINGS)
    assert FILES["cat"][1] in str(refusal.value) and (root / FOLDER / "cat.zip").exists()


def test_zip_that_changes_later_is_named(root, monkeypatch):
    """A recording damaged within a zip is found by its checksum, and the zip named."""
    whole = pack(root, "cat")
    (root / FOLDER / "cat.zip").write_bytes(whole[:1000] + b"!" + whole[1001:])
    with pytest.raises(ValueError, match="cat.zip is damaged .*at cat/cifar10_cat_0.aedat"):
        find_recordings(root)["cat", 0].read()


# Conversion


def test_missing_frames_are_made(root):
    """Exactly the missing files are made, even when all but one are there; leftovers of a killed writer go."""
    cache = cache_folder(root, **SETTINGS)
    before, states = frames_of(root), {path: path.stat() for path in cache.glob("*.npy")}
    gone = cache / "cifar10_dog_1.npy"
    gone.unlink()
    (cache / ".cifar10_dog_1.npy.1.part").write_bytes(b"half")
    convert(root, workers=1, **SETTINGS)
    assert frames_of(root) == before and not list(cache.glob(".*.part"))
    for path, state in states.items():
        assert path == gone or (path.stat().st_ino, path.stat().st_mtime_ns) == (state.st_ino, state.st_mtime_ns)


@pytest.mark.parametrize("spoil, message", [(lambda whole: whole[:-5], "truncated or damaged"),
                                            (lambda whole: whole[:-8 * 498], "2 events cannot be split into 3 frames")])
def test_truncated_recordings_are_named(root, spoil, message):
    """A truncated recording stops the conversion and is named; files already made stay, and it goes on from there."""
    before = frames_of(root)
    for name in ("airplane", "truck"):
        (cache_folder(root, **SETTINGS) / f"cifar10_{name}_1.npy").unlink()
    path = root / FOLDER / "truck" / "cifar10_truck_1.aedat"
    whole = path.read_bytes()
    path.write_bytes(spoil(whole))
    with pytest.raises(ValueError, match=f"cifar10_truck_1.aedat.*{message}"):
        convert(root, workers=1, **SETTINGS)
    assert frames_of(root) == {name: frames for name, frames in before.items() if name != "cifar10_truck_1.npy"}
    path.write_bytes(whole)
    convert(root, workers=1, **SETTINGS)
    assert frames_of(root) == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_interrupted_conversion(root, number):
    """Killed, ended or interrupted half-way, a conversion leaves whole files only and no process, and is continued."""
    cache = cache_folder(root, **SETTINGS)
    for copy in range(3, 253):
        shutil.copy(root / FOLDER / "cat" / "cifar10_cat_1.aedat", root / FOLDER / "cat" / f"cifar10_cat_{copy}.aedat")
    script = ("import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's & ignores it
              f"from data.dvs_convert import convert; convert({str(root)!r}, workers=2, **{SETTINGS!r})")
    process = subprocess.Popen([sys.executable, "-c", script], cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    while len([*cache.glob("*.npy")]) < 40:
        assert process.poll() is None
    process.send_signal(number)
    assert process.wait(10) != 0
    done = {path: path.stat() for path in cache.glob("*.npy")}
    assert 40 <= len(done) < 280
    assert number != signal.SIGINT or not list(cache.glob(".*"))
    for path in done:
        assert np.load(path).shape == (3, 2, 48, 48)
    convert(root, workers=1, **SETTINGS)
    for path, state in done.items():
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (state.st_ino, state.st_mtime_ns)
    frames = frames_of(root)
    assert len(frames) == 280 and not list(cache.glob(".*.part"))
    for copy in range(3, 253):
        assert frames[f"cifar10_cat_{copy}.npy"] == frames["cifar10_cat_1.npy"]


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_conversion_without_file_locks(root, monkeypatch, capsys, error):
    """A file system without file locks does not stop a conversion, and of two at a time the second finds all done."""
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(error, os.strerror(error))

    before = frames_of(root)
    for path in cache_folder(root, **SETTINGS).glob("*_cat_*.npy"):
        path.unlink()
    monkeypatch.setattr(fcntl, "flock", refuse)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda _: convert(root, workers=1, **SETTINGS), range(2)))
    assert frames_of(root) == before and not list(cache_folder(root, **SETTINGS).glob(".*"))
    assert capsys.readouterr().out.count("Converting recordings, recording 0/3") == 1


SCRIPT = """
import warnings
warnings.simplefilter("ignore")
from data.cifar10_dvs import CIFAR10DVS
print("run")
print(len(CIFAR10DVS("raw", train=True, frames=3, transform="reference", download=False)))
"""


@pytest.mark.parametrize("way", ["file", "standard input"])
def test_scripts_without_a_guard(root, tmp_path, way):
    """A script without ``if __name__ == "__main__"`` that converts runs once and ends, however it is given to Python.

    It may run in a folder where another package ``data`` stands."""
    for path in cache_folder(root, **SETTINGS).glob("*_cat_*.npy"):
        path.unlink()
    if way == "file":
        for folder, contents in (("scripts", SCRIPT), ("data", "raise SystemExit('another data')")):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "__init__.py").write_text(contents)
    command = {"file": ["scripts/__init__.py"], "standard input": ["-"]}[way]
    done = subprocess.run([sys.executable, *command], cwd=tmp_path, env=environment(), capture_output=True, text=True,
                          input=SCRIPT if way == "standard input" else None, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["run", "Converting recordings, recording 0/3",
                                        "Converting recordings, recording 3/3", "20"]


def test_faults_of_workers(root, monkeypatch):
    """A worker's fault shows its traceback, one that dies is named, and a transform of the user's own reaches it."""
    def convert_with(transform: Callable[..., np.ndarray]) -> None:
        monkeypatch.setitem(frames.TRANSFORMS, "own", transform)
        convert(root, workers=2, frames=3, transform="own")

    for transform, error, message in ((lambda counts, size: counts.nothing, AttributeError, "nothing"),
                                      (lambda counts, size: open("/missing/file"), UserError, "No such file .*missing"),
                                      (lambda counts, size: os._exit(1), UserError, "killed: see to the memory")):
        with pytest.raises(error, match=message):
            convert_with(transform)
        (cache_folder(root, frames=3, transform="own") / dvs_convert.MARK).unlink()
    convert_with(lambda counts, size: counts[..., :size, :size])
    assert len([*cache_folder(root, frames=3, transform="own").glob("*.npy")]) == 30
