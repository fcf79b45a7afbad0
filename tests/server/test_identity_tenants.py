"""One tenant against everything of another's: the answers are those for things that are not there."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest
from authority import bearer, channel
from harness import KEYS, Caller, failure, spec_digest
from tenancy import Service, tenants_served

from protos.gen.inference import open_inference_pb2, open_inference_pb2_grpc
from protos.gen.secateur.v1 import inference_pb2, keys_pb2, model_pb2


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with tenants_served(tmp_path_factory.mktemp("tenants")) as served:
        yield served


def refused(act: Callable[[], object]) -> tuple[str, str]:
    found = failure(act)
    return found.reason, found.message


def test_a_tenant_cannot_use_or_see_anothers_keys(service: Service) -> None:
    acme, other = service.caller("acme"), service.caller("other")
    key_set = acme.upload()
    handle = acme.keys.ListKeySets(keys_pb2.ListKeySetsRequest(), timeout=10).key_sets[0].handle
    acts: dict[str, Callable[[Caller, str, str], object]] = {
        "infer": lambda c, i, h: c.infer(i, b"echo:x"),
        "get": lambda c, i, h: c.keys.GetKeySet(keys_pb2.GetKeySetRequest(key_set_id=i, handle=h), timeout=10),
        "touch": lambda c, i, h: c.keys.TouchKeySet(keys_pb2.TouchKeySetRequest(key_set_id=i, handle=h), timeout=10),
        "delete": lambda c, i, h: c.keys.DeleteKeySet(keys_pb2.DeleteKeySetRequest(key_set_id=i, handle=h), timeout=10),
    }
    for name, act in acts.items():
        unknown = refused(lambda act=act: act(other, "00" * 16, ""))  # type: ignore[misc]
        assert unknown[0] == "KEY_SET_UNKNOWN", name
        assert refused(lambda act=act: act(other, key_set.key_set_id, "")) == unknown, name  # type: ignore[misc]
        if name != "infer":
            assert refused(lambda act=act: act(other, "", handle)) == unknown, name  # type: ignore[misc]
    assert not other.keys.ListKeySets(keys_pb2.ListKeySetsRequest(), timeout=10).key_sets
    assert acme.infer(key_set.key_set_id, b"echo:x").ciphertexts.endswith(b"|x"), "it is still there for its own"


def test_a_tenant_learns_nothing_from_offering_anothers_bytes(service: Service) -> None:
    """Stored bytes spare their own tenant an upload; another one uploads as if they were not there."""
    acme, other = service.caller("acme"), service.caller("dedup")
    assert acme.upload() and acme.offer().WhichOneof("result") == "key_set"
    assert other.offer().WhichOneof("result") == "upload"


def test_a_tenant_cannot_touch_anothers_upload(service: Service) -> None:
    acme, other = service.caller("uploader"), service.caller("other")
    upload_id = acme.begin(KEYS + b"more")
    acts: list[Callable[[str], object]] = [
        other.offset,
        other.commit,
        lambda i: other.send(i, b"x"),
        lambda i: other.keys.UploadChunk(keys_pb2.UploadChunkRequest(upload_id=i, data=b"x"), timeout=10),
    ]
    for act in acts:
        unknown = refused(lambda act=act: act("00" * 16))  # type: ignore[misc]
        assert unknown[0] == "UPLOAD_UNKNOWN"
        assert refused(lambda act=act: act(upload_id)) == unknown  # type: ignore[misc]
    assert acme.offset(upload_id) == 0


def test_equal_requests_of_two_tenants_are_two(service: Service) -> None:
    """Otherwise a reply, or how fast it comes, would tell that somebody else asked the same."""
    acme, other = service.caller("acme"), service.caller("twin")
    ids, request_id = (acme.upload().key_set_id, other.upload().key_set_id), str(uuid.uuid4())
    first, again = (acme.infer(ids[0], b"echo:same", request_id=request_id) for _ in range(2))
    assert first == again, "one evaluation for one tenant"
    assert other.infer(ids[1], b"echo:same", request_id=request_id).timings != first.timings


def test_a_tenant_cannot_watch_cancel_or_collect_anothers_job(service: Service) -> None:
    acme, other = service.caller("acme"), service.caller("other")
    asked = inference_pb2.InferRequest(
        model="digits", key_set_id=acme.upload().key_set_id, ciphertexts=b"echo:x", request_id=str(uuid.uuid4())
    )
    job_id = acme.inference.SubmitJob(inference_pb2.SubmitJobRequest(call=asked), timeout=10).job_id
    acts: list[Callable[[Caller, str], object]] = [
        lambda c, i: list(c.inference.WatchJob(inference_pb2.WatchJobRequest(job_id=i), timeout=10)),
        lambda c, i: c.inference.GetResult(inference_pb2.GetResultRequest(job_id=i), timeout=10),
        lambda c, i: c.inference.CancelJob(inference_pb2.CancelJobRequest(job_id=i), timeout=10),
    ]
    for act in acts:
        unknown = refused(lambda act=act: act(other, "00" * 16))  # type: ignore[misc]
        assert unknown[0] == "JOB_UNKNOWN"
        assert refused(lambda act=act: act(other, job_id)) == unknown  # type: ignore[misc]
    assert acts[0](acme, job_id) and acts[1](acme, job_id)


def test_a_model_that_a_tenant_may_not_use_is_unknown_to_it(service: Service) -> None:
    narrow, wide = service.caller("narrow"), service.caller("acme")
    listed = {
        c: [m.name for m in c_.models.ListModels(model_pb2.ListModelsRequest(), timeout=10).models]
        for c, c_ in (("narrow", narrow), ("wide", wide))
    }
    assert listed == {"narrow": ["other"], "wide": ["digits", "other"]}
    digits, absent = ({"model": name} for name in ("digits", "absent"))
    key_set_id = wide.upload().key_set_id
    acts: list[Callable[[dict[str, str]], object]] = [
        lambda m: narrow.get_model(m["model"]),
        lambda m: narrow.get_model(m["model"], "10"),
        lambda m: narrow.get_model(m["model"], "11"),
        lambda m: narrow.models.EstimateCost(model_pb2.EstimateCostRequest(**m), timeout=10),
        lambda m: narrow.infer(key_set_id, b"echo:x", **m),
        lambda m: narrow.infer(key_set_id, b"echo:x", client_spec_digest=spec_digest(), **m),
        lambda m: narrow.inference.SubmitJob(
            inference_pb2.SubmitJobRequest(call=inference_pb2.InferRequest(ciphertexts=b"x", **m)), timeout=10
        ),
    ]
    for act in acts:
        unknown = refused(lambda act=act: act(absent))  # type: ignore[misc]
        assert unknown[0] == "MODEL_UNKNOWN"
        reason, message = refused(lambda act=act: act(digits))  # type: ignore[misc]
        assert (reason, message.replace("digits", "absent")) == unknown
    unknown = refused(lambda: narrow.offer(client_spec_digest="00" * 32))
    reason, message = refused(lambda: narrow.offer())
    assert (reason, message.replace(spec_digest()[:12], "00" * 6)) == unknown


def test_open_inference_clients_meet_the_same_rules(service: Service) -> None:
    narrow = channel(service.server.address, service.ours)
    metadata = bearer(service.issuer.token("narrow"))
    stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(narrow)

    def ready(name: str) -> bool:
        request = open_inference_pb2.ModelReadyRequest(name=name)
        return bool(stub.ModelReady(request, timeout=10, metadata=metadata).ready)

    def described(name: str) -> tuple[str, str]:
        request = open_inference_pb2.ModelMetadataRequest(name=name)
        reason, message = refused(lambda: stub.ModelMetadata(request, timeout=10, metadata=metadata))
        return reason, message.replace(name, "?")

    assert ready("other") and not ready("digits") and not ready("absent")
    assert described("digits") == described("absent")
    narrow.close()
