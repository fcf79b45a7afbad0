"""The real runtime behind the server: a tiny plan served by TenSEAL, honest and hostile bytes, and the import rules."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from harness import Caller, failure, make_config, sha256

from he_runtime import CompressedModel, Plan, compile, price, run_clear
from he_runtime.backends.tenseal_secret import SecretKey
from he_runtime.client_spec import ClientSpec
from he_runtime.cost import load_default
from he_runtime.errors import PlanError, SecateurError
from he_runtime.model import InputSpec, Node, OutputSpec
from he_runtime.wire import KeySetWriter, decode_ciphertexts, encode_ciphertexts
from protos import convert
from protos.gen.secateur.v1 import model_pb2
from server.checks import check
from server.config import ServerConfig
from server.engine import he_model
from server.running import start

X = np.linspace(-1, 1, 8)


def make_model() -> CompressedModel:
    rng = np.random.default_rng(7)
    arrays = {"w": rng.normal(size=(4, 8)) / 4, "one": np.ones(()), "zero": np.zeros(())}
    nodes = (
        Node("dense", "dense", ("x",), (4,), {}, {"weight": "w"}),
        Node("square", "quadratic", ("dense",), (4,), {}, {"a": "one", "b": "zero", "c": "zero"}),
    )
    ranges = {"x": (-1.0, 1.0), "dense": (-2.0, 2.0), "square": (0.0, 4.0)}
    output = OutputSpec("square", labels=("a", "b", "c", "d"), post_processing="argmax")
    return CompressedModel("tiny", InputSpec("x", (8,)), output, nodes, arrays, ranges=ranges)


@dataclass
class Real:
    """A served tiny model, and a client of it with a key set that it uploaded."""

    config: ServerConfig
    caller: Caller
    plan: Plan
    spec: ClientSpec
    secret: SecretKey
    key_file: bytes
    key_set_id: str

    def encrypt(self) -> bytes:
        border = self.spec.input
        slots = border.pack(X[None])
        return encode_ciphertexts([self.secret.encrypt(s, border.level, border.scale) for s in slots], self.spec.params)

    def upload(self, data: bytes) -> str:
        digests = {"params_digest": self.spec.params.digest, "client_spec_digest": self.spec.digest}
        return self.caller.upload(data, **digests).key_set_id


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    directory = tmp_path_factory.mktemp("real")
    model = make_model()
    plan = compile(model, degrees=(4096, 8192), max_error=0.5)
    plan.save(model.save(directory / "models" / "served" / "1") / "plan")
    (directory / "models" / "served" / "1" / "plan" / "dense_counts.json").write_text('{"rotate": 99}')
    engine = {"runtime": "server.engine.he_model", "backend": "tenseal"}
    config = make_config(directory, engine=engine)
    with start(config) as server, grpc.insecure_channel(server.address) as channel:
        caller = Caller(channel, timeout=60.0)
        spec = ClientSpec.parse(caller.get_model("served").client_spec)
        secret = SecretKey.generate(spec.params)
        file = io.BytesIO()
        with KeySetWriter(file, spec.params, spec.keys) as writer:
            for record in secret.make_keys(spec.keys):
                writer.write(record)
        real = Real(config, caller, plan, spec, secret, file.getvalue(), "")
        real.key_set_id = real.upload(real.key_file)
        yield real


def _by_leaf(plan: Plan) -> dict[str, int]:
    counts: dict[str, int] = {}
    for (leaf, _), count in plan.counts.items():
        counts[leaf] = counts.get(leaf, 0) + count
    return counts


def test_an_encrypted_answer(real: Real) -> None:
    reply = real.caller.infer(real.key_set_id, real.encrypt(), model="served", client_spec_digest=real.spec.digest)
    (ct,) = decode_ciphertexts(reply.ciphertexts, real.spec.params, max_count=1)
    answer = real.spec.output.unpack(real.secret.decrypt(ct)[None])[0]
    assert np.abs(answer - run_clear(real.plan, X[None])[0]).max() <= real.plan.error_bound
    assert dict(reply.counts) == _by_leaf(real.plan)
    assert reply.plan_digest == real.plan.digest == real.spec.plan_digest


def test_the_spec_is_named_as_served(real: Real) -> None:
    served = convert.served_model_from_proto(real.caller.get_model("served"))
    assert (real.spec.model, real.spec.version) == ("served", "1")
    assert served.client_spec_digest == sha256(served.client_spec) == real.spec.digest


def test_the_estimate_is_the_plans(real: Real) -> None:
    reply = real.caller.models.EstimateCost(model_pb2.EstimateCostRequest(model="served"), timeout=20)
    assert reply.up_bytes == len(real.encrypt()) and reply.key_bytes == len(real.key_file)
    assert 0 < reply.low_ms < reply.predicted_ms < reply.high_ms and reply.confidence == "order of magnitude"
    assert dict(reply.dense_counts) == {"rotate": 99} and dict(reply.counts) == _by_leaf(real.plan)
    report = price(real.plan, load_default("tenseal"))
    assert [(x.name, x.predicted_ms) for x in reply.layers] == [(x.name, x.ms) for x in report.layers]
    assert all(x.low_ms < x.predicted_ms < x.high_ms for x in reply.layers)
    assert (reply.peak_bytes, reply.keys) == (report.peak_bytes, len(real.plan.keys.requests))
    assert (reply.levels_left, reply.error_bound) == (0, real.plan.error_bound)


def test_a_foreign_table_is_named_and_one_of_another_back_end_refused(real: Real, tmp_path: Path) -> None:
    directory = real.plan.save(make_model().save(tmp_path / "m" / "1") / "plan").parent
    description = he_model.describe(directory, "m", "1")
    foreign = replace(load_default("tenseal"), kind="measured", machine="a mainframe").save(tmp_path / "foreign.json")
    assert "measured on a mainframe" in he_model.estimate(description, "tenseal", foreign).confidence
    with pytest.raises(PlanError, match="is of 'tenseal'"):
        he_model.estimate(description, "pyfhel", foreign)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "magic", "empty-object"])
def test_damaged_ciphertexts_are_refused(real: Real, damage: str) -> None:
    good = real.encrypt()
    at = len(good) // 2
    bad = {
        "truncated": good[:-1],
        "flipped": good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :],
        "magic": b"SEAL" + good[4:],
        "empty-object": encode_ciphertexts([], real.spec.params),
    }[damage]
    refused = failure(lambda: real.caller.infer(real.key_set_id, bad, model="served"))
    expected = {
        "truncated": "BYTES_TRUNCATED",
        "flipped": "DIGEST_MISMATCH",
        "magic": "BYTES_MALFORMED",
        "empty-object": "SIZE_MISMATCH",
    }
    assert refused.reason == expected[damage]


@pytest.mark.parametrize(("level", "factor", "reason"), [(-1, 1.0, "LEVEL_MISMATCH"), (0, 2.0, "SCALE_MISMATCH")])
def test_a_wrong_level_or_scale_is_refused(real: Real, level: int, factor: float, reason: str) -> None:
    border = real.spec.input
    ct = real.secret.encrypt(border.pack(X[None])[0], border.level + level, border.scale * factor)
    bad = encode_ciphertexts([ct], real.spec.params)
    assert failure(lambda: real.caller.infer(real.key_set_id, bad, model="served")).reason == reason


def test_damaged_and_incomplete_keys_are_refused_at_commit(real: Real) -> None:
    at = len(real.key_file) // 2
    flipped = real.key_file[:at] + bytes([real.key_file[at] ^ 1]) + real.key_file[at + 1 :]
    assert failure(lambda: real.upload(flipped)).reason == "DIGEST_MISMATCH"
    assert failure(lambda: real.upload(real.key_file[:-1])).reason == "BYTES_TRUNCATED"
    few = type(real.spec.keys)(real.spec.keys.requests[:-1])
    file = io.BytesIO()
    with KeySetWriter(file, real.spec.params, few) as writer:
        for record in real.secret.make_keys(few):
            writer.write(record)
    assert failure(lambda: real.upload(file.getvalue())).reason == "KEY_MISSING"
    reply = real.caller.infer(real.key_set_id, real.encrypt(), model="served")
    assert reply.ciphertexts


def test_a_plan_of_another_model_or_format_is_named_by_check(real: Real, tmp_path: Path) -> None:
    model = make_model()
    other = model.with_(name="other")
    real.plan.save(other.save(tmp_path / "models" / "a" / "1") / "plan")
    future = real.plan.save(model.save(tmp_path / "models" / "b" / "1") / "plan")
    record = json.loads((future / "plan.json").read_text())
    (future / "plan.json").write_text(json.dumps({**record, "version": 99}))
    problems = check(make_config(tmp_path, engine={"runtime": "server.engine.he_model"}))
    assert any("a version 1" in p and "made for model" in p for p in problems)
    assert any("b version 1" in p and "DIGEST" in p for p in problems)
    assert any("no model can be served" in p for p in problems)


def test_malformed_dense_counts_are_an_error(real: Real, tmp_path: Path) -> None:
    directory = real.plan.save(make_model().save(tmp_path / "m" / "1") / "plan").parent
    (directory / "plan" / "dense_counts.json").write_text("[1]")
    description = he_model.describe(directory, "m", "1")
    with pytest.raises(SecateurError, match="dense_counts"):
        he_model.estimate(description, "tenseal", None)


def test_the_server_reaches_no_secret_side_and_no_torch() -> None:
    """In a fresh interpreter: the front door loads neither; a worker's module does not load gRPC either."""
    code = "import sys, {}; print(sorted(m for m in sys.modules if m in {{'torch', 'grpc', 'client', 'he_runtime.backends.tenseal_secret', 'he_runtime.backends.hybrid_keys', 'he_runtime.backends.zeros', 'he_runtime.backends.secret_file'}}))"
    for imports, allowed in (
        ("server.app, server.engine.he_model", "['grpc']"),
        ("server.engine.worker, server.engine.he_model", "[]"),
    ):
        done = subprocess.run([sys.executable, "-c", code.format(imports)], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == allowed
