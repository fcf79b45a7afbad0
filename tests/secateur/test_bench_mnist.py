"""`secateur bench mnist`: its keys and sums, with a stand-in for the native kernel and another for Orion."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from he_runtime import backends, kernel
from he_runtime.errors import BackendUnavailable
from he_runtime.reference import forward
from secateur import bench_mnist_text, contenders, mnist_networks, orion_environment, orion_export
from secateur.orion_peer import OrionPeer
from secateur.peak_memory import measure_peak

KEYS = {
    "network", "title", "native_s", "native_1thread_s", "tenseal_backend_s", "tenseal_api_s", "orion_s", "ratios",
    "relative_error", "argmax_matches", "relative_errors", "argmax_matches_of", "images", "N", "log2_qp", "peak_bytes",
    "predicted_peak_bytes", "process_peak_bytes", "peak_backend", "parameters", "threads", "accuracy", "reasons",
}  # fmt: skip

# What benchmarks/orion/run.py does, in NumPy; image 9 ends it.
FAKE_ORION = """
import json, sys, time
import numpy as np
arrays = np.load(sys.argv[1])
spec = json.loads(str(arrays["spec"]))
assert spec["config"]["ckks_params"]["RingType"] == "ConjugateInvariant"
print("chatter", file=sys.stderr)
print(json.dumps({"version": "0", "setup_s": 0.0, "peak_bytes": 1}), flush=True)
def window(x, layer, w):
    p, s, size = layer["padding"], layer["stride"], w.shape[2]
    x = np.pad(x, ((0, 0), (p, p), (p, p)))
    seen = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))[:, ::s, ::s]
    return np.einsum("oirc,ihwrc->ohw", w, seen)
for line in sys.stdin:
    if int(line) == 9:
        raise MemoryError("too little memory")
    y = arrays["x"][int(line)].astype(np.float64)
    for k, layer in enumerate(spec["layers"]):
        if layer["kind"] == "flatten":
            y = y.ravel()
        elif layer["kind"] == "square":
            y = y * y
        elif layer["kind"] == "dense":
            y = arrays[f"weight_{k}"] @ y + arrays[f"bias_{k}"]
        else:
            y = window(y, layer, arrays[f"weight_{k}"]) + arrays[f"bias_{k}"][:, None, None]
    time.sleep(0.01)
    print(json.dumps({"index": int(line), "seconds": 2.0, "output": y.tolist(), "peak_bytes": 2}), flush=True)
"""


@dataclass(frozen=True)
class _Status:
    """What the kernel says of itself."""

    available: bool
    reason: str = ""
    remedy: str = ""


_PLANS: dict[str, Any] = {}


def _planned_once(model: Any, _: str, plan_for: Any = contenders.plan_for) -> Any:
    if model.digest not in _PLANS:
        _PLANS[model.digest] = plan_for(model, "tenseal")
    return _PLANS[model.digest]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One short epoch, and one planning per network."""
    monkeypatch.setattr(contenders, "plan_for", _planned_once)
    short = {
        name: mnist_networks.BenchNetwork(n.module, n.title, 1, 128) for name, n in mnist_networks.NETWORKS.items()
    }
    for name, network in short.items():
        monkeypatch.setitem(mnist_networks.NETWORKS, name, network)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def no_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the kernel was not built, whether or not it was."""
    monkeypatch.setattr(kernel, "status", lambda: _Status(False, "not built here", "make kernel"))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A native back end that is SEAL's; the threads that it was given."""
    threads: list[int] = []
    monkeypatch.setitem(backends.BACKENDS, "native", backends.BACKENDS["tenseal"])
    monkeypatch.setattr(kernel, "status", lambda: _Status(True))
    monkeypatch.setattr(contenders, "use_threads", threads.append)

    def measure(*_: object) -> None:
        raise BackendUnavailable("a process of its own has no stand-in")

    monkeypatch.setattr("secateur.peak_memory.measure_peak", measure)
    return threads


@pytest.fixture
def fake_orion(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "orion"
    folder.mkdir()
    (folder / "run.py").write_text(FAKE_ORION)
    monkeypatch.setattr("secateur.orion_peer.ORION", folder)
    monkeypatch.setattr("secateur.orion_peer.orion_python", lambda directory: Path(sys.executable))
    return folder


def _model(name: str, cache: Path) -> tuple[Any, Any]:
    from he_runtime.reference import normalize
    from model_prep.data import load

    data = load("mnist").subset(128, 16)
    model = mnist_networks.dense_model(name, data, cache)
    return model, normalize(model.input, data.x_test[:10])


def test_everybody_runs(ask: Any, cache: Path, stand_in: list[int], fake_orion: Path) -> None:
    record = ask("bench", "mnist", "--images", 2, "--networks", "lola", "--cache", cache)
    assert (record["data"], record["images"], record["cores"]) == ("digits-upscaled", 2, contenders.cores())
    (row,) = record["networks"]
    assert set(row) == KEYS
    assert stand_in[-2:] in ([1, contenders.cores()], [contenders.cores(), 1]), "all threads and one, in turn"
    assert len(stand_in) == 6
    assert row["argmax_matches"] == row["images"] == 2
    assert row["relative_error"] < 0.02 and row["relative_errors"]["orion"] < 1e-5
    assert row["argmax_matches_of"] == dict.fromkeys(("native", "native_1thread", "tenseal_backend", "orion"), 2)
    assert row["orion_s"] == 2.0
    assert row["ratios"]["orion_over_native"] == pytest.approx(2.0 / row["native_s"])
    assert row["ratios"]["orion_over_native_1thread"] == pytest.approx(2.0 / row["native_1thread_s"])
    assert row["ratios"]["tenseal_api_over_native"] is row["tenseal_api_s"] is None
    assert set(row["reasons"]) == {"tenseal_api", "peak_bytes"}
    assert (row["N"], row["parameters"]["orion"]["log2_qp"]) == (8192, 217)
    assert row["predicted_peak_bytes"] > 1e6 and row["peak_backend"] == "native"

    console = Console(file=StringIO(), width=80, markup=False)
    bench_mnist_text.render(console, record)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, shown.splitlines())) <= 80
    for word in ("lola", "2.000", "8192", "217", "no figure for lola tenseal_api", "2/2"):
        assert word in shown


def test_without_native_and_orion(cli: Any, ask: Any, cache: Path, no_native: None) -> None:
    (row,) = ask("bench", "mnist", "--images", 1, "--networks", "lola", "--cache", cache, "--no-orion")["networks"]
    assert row["native_s"] is row["native_1thread_s"] is row["orion_s"] is row["relative_error"] is None
    assert row["tenseal_backend_s"] > 0 and row["relative_errors"]["tenseal_backend"] < 0.02
    assert row["reasons"]["orion"] == "left out by --no-orion"
    assert "not built" in row["reasons"]["native"] == row["reasons"]["native_1thread"]
    assert row["peak_backend"] == "tenseal"
    assert 0.7 < row["peak_bytes"] / row["predicted_peak_bytes"] < 1.4
    assert row["process_peak_bytes"] > row["peak_bytes"]


def test_native_is_refused_where_it_is_asked_for(refused: Any, no_native: None) -> None:
    assert "not built" in refused("bench", "mnist", "--backends", "native")
    assert "need some of mlp, lola" in refused("bench", "mnist", "--networks", "resnet")
    assert "need some of native, tenseal" in refused("bench", "mnist", "--backends", "seal")


@pytest.mark.parametrize("name", list(orion_export.CONFIGURATIONS))
def test_orion_gets_the_same_network(name: str, cache: Path, fake_orion: Path, tmp_path: Path) -> None:
    """Layers, strides, paddings and the squares' factors: what the file says computes the clear logits."""
    model, x = _model(name, cache)
    clear = forward(model, x)
    with OrionPeer(model, name, x, float(np.abs(clear).max()), tmp_path) as peer:
        for k in (0, 3):
            _, logits = peer.run(k)
            np.testing.assert_allclose(logits, clear[k], rtol=1e-4, atol=1e-4)


def test_large_outputs_are_shrunk_for_orion(cache: Path, tmp_path: Path) -> None:
    """Its last prime leaves three bits above the scale, one of them a sign: above 4 in magnitude it would wrap."""
    model, x = _model("lola", cache)
    files = {largest: tmp_path / f"{largest}.npz" for largest in (1.0, 9.0)}
    factors = {k: orion_export.export(model, "lola", x, k, path) for k, path in files.items()}
    assert factors == {1.0: 1.0, 9.0: 2.0**-3}
    last = [np.load(path)["weight_5"] for path in files.values()]
    np.testing.assert_allclose(last[1], last[0] / 8)


def test_orion_that_fails_is_left_out(cache: Path, fake_orion: Path, tmp_path: Path) -> None:
    model, x = _model("lola", cache)
    with (
        OrionPeer(model, "lola", x, 1.0, tmp_path) as peer,
        pytest.raises(BackendUnavailable, match="too little memory"),
    ):
        peer.run(9)
    (fake_orion / "run.py").write_text("raise SystemExit('RuntimeError: no library')")
    with pytest.raises(BackendUnavailable, match=r"code 1, RuntimeError: no library"):
        OrionPeer(model, "lola", x, 1.0, tmp_path)


def test_a_contender_that_fails_midway_loses_its_figures(cache: Path) -> None:
    from secateur.bench_mnist import _figures, _interleaved

    model, x = _model("lola", cache)

    def good(k: int) -> tuple[float, Any]:
        return 1.0 + k, np.arange(10.0)

    def bad(k: int) -> tuple[float, Any]:
        if k == 1:
            raise BackendUnavailable("cannot go on")
        return 1.0, np.arange(10.0)

    group = contenders.Contenders(model, x[:3], 1.0, {"native": good, "orion": bad})
    figures = _figures(_interleaved(group), np.tile(np.arange(10.0), (3, 1)))
    assert (figures["native_s"], figures["orion_s"], figures["argmax_matches"]) == (2.0, None, 3)
    assert group.absent == {"orion": "cannot go on"}


def test_an_environment_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "orion"
    folder.mkdir()
    monkeypatch.setattr(orion_environment, "ORION", folder)
    with pytest.raises(BackendUnavailable, match="try a checkout"):
        orion_environment.orion_python(tmp_path / "venv")
    (folder / "requirements.txt").write_text("# a comment\norion-fhe==1.0.2\n")
    said = "import sys; sys.stderr.write('noise\\nERROR: no matching distribution\\nmore\\n'); sys.exit(1)"
    with pytest.raises(BackendUnavailable, match="ERROR: no matching distribution"):
        orion_environment._run([sys.executable, "-c", said])
    monkeypatch.setattr(orion_environment, "_installed", lambda python: "1.0.2")
    monkeypatch.setattr(orion_environment, "_run", lambda command: pytest.fail("it is there already"))
    assert orion_environment.orion_python(tmp_path / "venv") == tmp_path / "venv" / "bin" / "python"


def test_memory_that_cannot_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    from he_runtime import CompressedModel, compile
    from he_runtime.model import InputSpec, Node, OutputSpec
    from he_runtime.reference import calibrate
    from secateur.local import Local

    layer = Node("layer", "dense", ("x",), (4,), arrays={"weight": "weight"})
    model = CompressedModel("small", InputSpec("x", (4,)), OutputSpec("layer"), (layer,), {"weight": np.eye(4)})
    planned = compile(calibrate(model, np.random.default_rng(0).normal(size=(8, 4))))
    monkeypatch.setattr("secateur.peak_memory.sys.executable", "/bin/false")
    with pytest.raises(BackendUnavailable, match="code 1"):
        measure_peak(planned, Local(planned), "tenseal")
