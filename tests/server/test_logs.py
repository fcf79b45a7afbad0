"""The log: one JSON object per line that says whose call it was, and nothing that would let a reader act as the caller."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_runtime
import grpc
import pytest
from harness import KEYS, Caller, failure, make_config, make_models

from he_runtime.errors import SecateurError
from server.engine.engine import Engine
from server.observe import logs
from server.running import start_subprocess

CAPABILITY = "0123456789abcdef" * 2
TOKEN = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJjYW5hcnkifQ.c2lnbmF0dXJl-canary"
KEY = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIcanary\n-----END EC PRIVATE KEY-----"


def line_of(name: str, **facts: Any) -> dict[str, Any]:
    """What the log's formatter makes of an event."""
    error = facts.pop("error", None)
    exc_info = (type(error), error, error.__traceback__) if error is not None else None
    record = logging.LogRecord("secateur.server", logging.INFO, __file__, 1, name, (), exc_info)
    record.facts = facts
    line: dict[str, Any] = json.loads(logs._JsonLines().format(record))
    return line


def test_a_line_is_an_object_with_time_level_event_and_facts() -> None:
    line = line_of("call", method="InferenceService/Infer", ms=1.5, payload=b"12345", where=Path("x"))
    assert set(line) == {"time", "level", "event", "method", "ms", "payload", "where"}
    assert (line["event"], line["level"], line["ms"], line["where"]) == ("call", "info", 1.5, "x")
    assert line["payload"] == "<5 bytes>"


@pytest.mark.parametrize(
    "text",
    [
        f"key set {CAPABILITY} is gone",
        f"KeyError: '{CAPABILITY}'",
        f"authorization: Bearer {TOKEN}",
        f"got {TOKEN}, need another",
        "cannot connect to postgresql://user:canary@database/keys",
        "connection failed: host=db password=canary sslmode=require",
        KEY,
        KEY[:50],
    ],
)
def test_what_looks_like_a_capability_or_a_credential_is_cut_out(text: str) -> None:
    try:
        raise RuntimeError(text)
    except RuntimeError as error:
        line = line_of("incident", cause=text, nested={"a": [text]}, error=error)
    written = json.dumps(line)
    assert "canary" not in written and CAPABILITY not in written and "c2lnbmF0" not in written and "MHcC" not in written
    assert "[cut]" in line["cause"] and "[cut]" in line["nested"]["a"][0] and "[cut]" in line["traceback"]
    assert "test_logs.py" in line["traceback"], "where it happened is kept"


def test_digests_traces_and_plain_text_stay() -> None:
    digest, trace = "ab" * 32, "cd" * 16
    line = line_of("x", cause=f"{digest} of model digits, see https://example.org/a:b@c", trace=trace)
    assert line["cause"] == f"{digest} of model digits, see https://example.org/a:b@c"
    assert line["trace"] == trace


def test_a_long_traceback_is_cut_at_its_beginning() -> None:
    line = line_of("x", error=RuntimeError("y" * 50_000 + " the end"))
    assert len(line["traceback"]) < 20_000 and line["traceback"].endswith(" the end")


async def test_facts_of_a_call_are_on_its_lines_and_its_tasks(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "secateur.server")

    async def work(name: str) -> None:
        logs.event(name)

    async def call(tenant: str) -> None:
        logs.begin(trace="t-" + tenant)
        logs.begin()
        logs.add(tenant=tenant, request=logs.hashed("an id"), nothing="")
        await asyncio.gather(asyncio.create_task(work("of " + tenant)))

    await asyncio.gather(asyncio.create_task(call("a")), asyncio.create_task(call("b")))
    logs.add(tenant="nobody's")
    logs.event("outside")
    facts = {r.getMessage(): r.facts for r in caplog.records}  # type: ignore[attr-defined]
    request = logs.hashed("an id")
    assert facts == {
        "of a": {"trace": "t-a", "tenant": "a", "request": request},
        "of b": {"trace": "t-b", "tenant": "b", "request": request},
        "outside": {},
    }


async def test_a_worker_is_told_whose_call_it_works_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Trace, tenant and request are on its lines, also of models that it loads, and are gone with the next job."""
    config = make_config(tmp_path)
    engine = Engine(config.engine, config.limits)
    model = fake_runtime.describe(tmp_path / "models" / "digits" / "10", "digits", "10")
    keys = tmp_path / "keys"
    keys.write_bytes(KEYS)

    async def call(payload: bytes, **facts: str) -> None:
        logs.begin(**facts)
        with pytest.raises(SecateurError):
            job = engine.submit("infer", model, payload, key_path=str(keys), key_sha256="a", timeout_seconds=10)
            await job

    await engine.start([])
    try:
        facts = {"trace": "cd" * 16, "tenant": "a", "request": logs.hashed("an id"), "unknown": "fact"}
        await asyncio.create_task(call(b"library:", **facts))
        await asyncio.create_task(call(b"library:", trace="ef" * 16))
        await asyncio.create_task(call(b"library:"))
    finally:
        await engine.stop()
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    found = [{k: line.get(k) for k in facts} for line in lines if line["event"] == "job failed"]
    nothing = dict.fromkeys(facts)
    assert found == [{**facts, "unknown": None}, {**nothing, "trace": "ef" * 16}, nothing]


def test_an_id_is_found_by_its_digest_and_not_the_other_way() -> None:
    assert logs.hashed("an id") == logs.hashed("an id") != logs.hashed("another")
    assert len(logs.hashed("an id")) == 12 and logs.hashed("") == ""


def test_lines_of_libraries_are_objects_too_and_scrubbed() -> None:
    code = f"""
import logging
from server.observe import logs
logs.set_up("info")
logging.getLogger("opentelemetry.exporter").warning("cannot send to %s", "http://user:canary@collector")
logging.getLogger("asyncio").error("Task exception was never retrieved: {TOKEN}")
logging.getLogger("grpc._cython").info("chatter")
logs.event("ours")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line.get("logger"), line["event"]) for line in lines] == [
        ("opentelemetry.exporter", "cannot send to http://[cut]@collector"),
        ("asyncio", "Task exception was never retrieved: [cut]"),
        (None, "ours"),
    ]


def test_no_secret_of_a_call_reaches_the_log_of_a_server_or_its_workers(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """At the level of most detail, over good calls, refused ones, and libraries that fail and name what they were given."""
    make_models(tmp_path / "models")
    config = tmp_path / "server.toml"
    config.write_text(
        'address = "127.0.0.1:0"\nlog_level = "debug"\nmodels = "models"\nstate = "state"\n'
        '[engine]\nbackend = "fake"\nruntime = "fake_runtime"\n'
    )
    request_id = "canary-request-id"
    with start_subprocess(config) as server, grpc.insecure_channel(server.address) as channel:
        caller = Caller(channel)
        keys = b"KEYS canary-in-the-keys" + bytes(1000)
        upload_id = caller.begin(keys)
        caller.send(upload_id, keys)
        key_set_id = caller.commit(upload_id).key_set_id
        caller.infer(key_set_id, b"echo:canary-in-the-payload", request_id=request_id)
        for payload in (b"garbage canary-in-the-payload", f"leak:{key_set_id}".encode(), b"die:"):
            failure(lambda p=payload: caller.infer(key_set_id, p, request_id=request_id))  # type: ignore[misc]
        failure(lambda: caller.infer(key_set_id, b"echo:x", model="nope"))
        failure(lambda: caller.commit(upload_id))
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    written = json.dumps(lines)
    for secret in (key_set_id, upload_id, request_id, "canary"):
        assert secret not in written
    calls = [line for line in lines if line.get("method") == "InferenceService/Infer" and line["event"] == "call"]
    assert [line["reason"] for line in calls] == ["", "BYTES_MALFORMED", "INTERNAL", "WORKER_LOST", "MODEL_UNKNOWN"]
    assert all(line["tenant"] == "anonymous" for line in calls)
    assert [line.get("request") for line in calls] == [logs.hashed(request_id)] * 4 + [None]
    (failed,) = (line for line in lines if line["event"] == "job failed")
    assert "RuntimeError: no such thing: [cut]" in failed["traceback"]
    assert (failed["tenant"], failed["request"]) == ("anonymous", logs.hashed(request_id)), (
        "a worker's line names the call"
    )
    assert any(line["event"] == "incident" and line.get("request") == logs.hashed(request_id) for line in lines)
