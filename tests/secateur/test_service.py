"""serve and predict: a server process, TLS on loopback, real keys, and every bad input that predict can be given."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_runtime import CompressedModel, Plan, run_clear
from he_runtime.backends import default_backend
from he_runtime.reference import normalize

PREDICT_KEYS = {
    "model", "answer", "label", "logits", "probabilities", "error_bound", "up_bytes", "down_bytes", "key_bytes",
    "uploaded_bytes", "counts", "timings",
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One client's secrets, so that its keys are made and sent once."""
    return tmp_path_factory.mktemp("client") / "home"


@pytest.fixture
def predict(service: Any, home: Path) -> Any:
    """The arguments of `secateur predict` for the service."""

    def arguments(path: Path, *more: object, model: str = "tiny") -> list[object]:
        fixed = ["--server", service.address, "--certificate", service.certificate, "--home", home]
        return ["predict", model, path, *fixed, *more]

    return arguments


def saved(path: Path, values: Any) -> Path:
    np.save(path, values)
    return path


def test_serve_check_accepts_what_compress_wrote(made: Any, ask: Any) -> None:
    record = ask("serve", "--models", made.models, "--address", "127.0.0.1:0", "--check")
    assert record == {"ok": True, "problems": [], "address": "127.0.0.1:0"}


def test_predict_answers_as_the_plan_does_in_the_clear(
    made: Any, ask: Any, predict: Any, images: Any, tmp_path: Path
) -> None:
    """One image, then the label of each of a batch; the keys travel once."""
    model, plan = CompressedModel.load(made.directory), Plan.load(made.directory / "plan")
    batch = images[:3]
    clear = run_clear(plan, normalize(model.input, batch))
    one = ask(*predict(saved(tmp_path / "one.npy", batch[0])))
    assert set(one) == PREDICT_KEYS
    assert one["answer"] == clear[0].argmax()
    assert one["label"] == str(clear[0].argmax())
    assert np.abs(np.array(one["logits"]) - clear[0]).max() <= one["error_bound"] == plan.error_bound
    assert sum(one["counts"].values()) == sum(plan.counts_on(default_backend()).values())
    assert one["down_bytes"] > 0 and 0 < one["up_bytes"] < one["key_bytes"]

    (tmp_path / "batch.json").write_text(json.dumps(batch.tolist()))
    three = ask(*predict(tmp_path / "batch.json"))
    assert three["label"] == [str(k) for k in clear.argmax(axis=1)]
    assert three["uploaded_bytes"] == 0


def test_predict_shows_a_person_the_label(cli: Any, predict: Any, images: Any, tmp_path: Path) -> None:
    said = cli(*predict(saved(tmp_path / "one.npy", images[0])))
    assert said.code == 0
    assert said.out.splitlines()[0] in set("0123456789")
    assert "error bound" in said.out


def test_predict_loads_no_torch(predict: Any, environment: Any, images: Any, tmp_path: Path) -> None:
    arguments = [str(a) for a in predict(saved(tmp_path / "one.npy", images[0]))]
    program = f"""
import sys
from secateur.main import app
try:
    app({arguments!r})
except SystemExit as end:
    assert not end.code
assert "client.run" in sys.modules
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_values_out_of_range_are_warned_of_or_refused(
    cli: Any, refused: Any, predict: Any, images: Any, tmp_path: Path
) -> None:
    path = saved(tmp_path / "bright.npy", images[0] * 3)
    said = cli(*predict(path, "--json"))
    assert said.code == 0
    (line,) = said.err.splitlines()
    assert line.startswith("warning: ")
    assert "'image'" in line and "[0, 1]" in line
    assert json.loads(said.out)["answer"] in range(10)
    strict = refused(*predict(path, "--strict"))
    assert "'image'" in strict and "[0, 1]" in strict


def test_a_bad_array_is_refused(refused: Any, predict: Any, images: Any, tmp_path: Path) -> None:
    shape = refused(*predict(saved(tmp_path / "shape.npy", images[0, :, :4])))
    assert "(1, 4, 8)" in shape and "(1, 8, 8)" in shape
    hole = images[0].copy()
    hole[0, 3, 3] = np.nan
    assert "NaN" in refused(*predict(saved(tmp_path / "nan.npy", hole)))


def test_a_bad_input_file_is_refused(refused: Any, predict: Any, tmp_path: Path) -> None:
    assert "missing.npy" in refused(*predict(tmp_path / "missing.npy"))
    (tmp_path / "image.png").write_bytes(b"png")
    assert "need .npy or .json" in refused(*predict(tmp_path / "image.png"))
    (tmp_path / "ragged.json").write_text("[[1, 2], [3]]")
    assert "rectangular" in refused(*predict(tmp_path / "ragged.json"))
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY")
    assert "cut.npy" in refused(*predict(tmp_path / "cut.npy"))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    assert "objects.npy" in refused(*predict(tmp_path / "objects.npy"))


def test_what_the_server_does_not_have_is_named(refused: Any, predict: Any, images: Any, tmp_path: Path) -> None:
    path = saved(tmp_path / "one.npy", images[0])
    unknown = refused(*predict(path, model="nope"))
    assert "'nope'" in unknown and "tiny" in unknown
    version = refused(*predict(path, "--version", "7"))
    assert "'7'" in version and "1" in version


def test_another_certificate_is_not_trusted(refused: Any, service: Any, images: Any, tmp_path: Path) -> None:
    path = saved(tmp_path / "one.npy", images[0])
    pin = "sha256:" + "0" * 64
    assert pin in refused("predict", "tiny", path, "--server", service.address, "--certificate", pin)


def test_a_server_that_is_not_there(refused: Any, images: Any, tmp_path: Path) -> None:
    path = saved(tmp_path / "one.npy", images[0])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    line = refused("predict", "tiny", path, "--server", address)
    assert address in line and "need a running server" in line
    assert "need host:port" in refused("predict", "tiny", path, "--server", "nonsense")
