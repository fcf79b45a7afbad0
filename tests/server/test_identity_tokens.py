"""Bearer tokens: what is believed, what is refused and why, and that a token cannot choose how it is verified."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jwt
import pytest
from authority import Issuer, write_jwks
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from server.errors import ConfigError
from server.identity.bearer import Claims, TokenVerifier, bearer_token
from server.identity.refusal import NotAuthenticated
from server.identity.settings import JwtConfig


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture
def config(issuer: Issuer, tmp_path: Path) -> JwtConfig:
    keys = write_jwks(tmp_path / "jwks.json", issuer.jwk)
    return JwtConfig(keys, issuer=Issuer.NAME, audience=Issuer.AUDIENCE)


def cause(verifier: TokenVerifier, token: str) -> str:
    with pytest.raises(NotAuthenticated) as caught:
        verifier.verify(token)
    assert token not in str(caught.value) and caught.value.message == NotAuthenticated("other").message
    return caught.value.cause


def test_a_token_that_holds_names_tenant_and_subject(config: JwtConfig, issuer: Issuer) -> None:
    assert TokenVerifier(config).verify(issuer.token()) == Claims("acme", "user of acme", None)


now = int(time.time())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"exp": now - 31}, "token expired"),
        ({"exp": None}, "without a required claim"),
        ({"exp": "never"}, "token malformed"),
        ({"nbf": now + 3600}, "not yet valid"),
        ({"iss": "https://issuer.example.evil"}, "another issuer"),
        ({"iss": "https://issuer"}, "another issuer"),
        ({"iss": None}, "without a required claim"),
        ({"aud": "another"}, "another audience"),
        ({"aud": None}, "without a required claim"),
        ({"aud": ["x", "y"]}, "another audience"),
        ({"sub": None}, "without a required claim"),
        ({"sub": 7}, "token malformed"),
        ({"tenant": None}, "names no tenant"),
        ({"tenant": ["acme"]}, "names no tenant"),
    ],
)
def test_a_token_with_a_wrong_claim_is_refused(
    config: JwtConfig, issuer: Issuer, changes: dict[str, Any], said: str
) -> None:
    if "sub" in changes and changes["sub"] is not None:  # the library refuses to sign it
        token = _signed(issuer, {**jwt.decode(issuer.token(), options={"verify_signature": False}), **changes})
    else:
        token = issuer.token(**changes) if "tenant" not in changes else issuer.token(changes["tenant"])
    assert said in cause(TokenVerifier(config), token)


def _signed(issuer: Issuer, claims: dict[str, Any]) -> str:
    return jwt.PyJWS().encode(json.dumps(claims).encode(), issuer.key, issuer.algorithm, headers={"kid": "k1"})


def test_clocks_may_differ_by_the_leeway(config: JwtConfig, issuer: Issuer) -> None:
    late = issuer.token(exp=int(time.time()) - 5)
    assert TokenVerifier(config).verify(late)
    assert cause(TokenVerifier(replace(config, leeway_seconds=0.0)), late) == "token expired"


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _forged(header: dict[str, Any], issuer: Issuer, secret: bytes | None) -> str:
    payload = issuer.token().split(".")[1]
    body = f"{_b64(json.dumps(header).encode())}.{payload}"
    signature = hmac.digest(secret, body.encode(), hashlib.sha256) if secret else b""
    return f"{body}.{_b64(signature)}"


def test_a_token_cannot_choose_how_it_is_verified(config: JwtConfig, issuer: Issuer, tmp_path: Path) -> None:
    """No signature, a public key as an HMAC secret, a key of its own, and another curve."""
    pem = tmp_path / "issuer.pem"
    pem.write_bytes(issuer.public_pem)
    for keys in (config.keys, pem):
        verifier = TokenVerifier(replace(config, keys=keys))
        for name in ("none", "None", "NONE", "", None):
            assert cause(verifier, _forged({"alg": name}, issuer, None)) == "token algorithm not allowed"
        for secret in (issuer.public_pem, issuer.public_pem.strip()):
            assert "not allowed" in cause(verifier, _forged({"alg": "HS256"}, issuer, secret))
        stranger = Issuer(key=ec.generate_private_key(ec.SECP256R1()))
        own = stranger.token(header={"jwk": stranger.jwk, "jku": "https://evil.example/jwks.json"})
        assert cause(verifier, own) == "token signed by no key of ours"
        other_curve = Issuer(algorithm="ES384", key=ec.generate_private_key(ec.SECP384R1()))
        assert "not allowed" in cause(verifier, other_curve.token())
        assert "unreadable" in cause(verifier, "not.a.token") and "unreadable" in cause(verifier, "x")


def test_secret_keys_verify_only_where_they_are_asked_for(config: JwtConfig, issuer: Issuer, tmp_path: Path) -> None:
    secret = bytes(range(32))
    mixed = write_jwks(tmp_path / "mixed.json", {"kty": "oct", "k": _b64(secret), "kid": "s"}, issuer.jwk)
    symmetric = Issuer("s", "HS256", secret)
    assert "not allowed" in cause(TokenVerifier(replace(config, keys=mixed)), symmetric.token())
    only = TokenVerifier(replace(config, keys=mixed, algorithms=("HS256",)))
    assert only.verify(symmetric.token()).tenant == "acme"
    # The public key in the same file does not serve as a secret.
    assert (
        cause(only, _forged({"alg": "HS256", "kid": "k1"}, issuer, issuer.public_pem))
        == "token signed by no key of ours"
    )


def test_the_key_that_a_token_names_is_used(config: JwtConfig, issuer: Issuer, tmp_path: Path) -> None:
    second = Issuer("k2")
    both = TokenVerifier(replace(config, keys=write_jwks(tmp_path / "two.json", issuer.jwk, second.jwk)))
    assert both.verify(issuer.token()) and both.verify(second.token())
    assert both.verify(second.token(header={"kid": None})), "without a name every fitting key is tried"
    assert cause(both, second.token(header={"kid": "k1"})) == "token signed by no key of ours"
    assert cause(both, second.token(header={"kid": "k3"})) == "token signed by no key of ours"


@pytest.mark.parametrize(
    ("algorithm", "make"),
    [
        ("RS256", lambda: rsa.generate_private_key(65537, 2048)),
        ("EdDSA", ed25519.Ed25519PrivateKey.generate),
        ("ES256", lambda: ec.generate_private_key(ec.SECP256R1())),
    ],
)
def test_each_default_kind_of_key_works_from_pem_and_jwks(
    config: JwtConfig, tmp_path: Path, algorithm: str, make: Any
) -> None:
    issuer = Issuer("k", algorithm, make())
    pem = tmp_path / "keys.pem"
    pem.write_bytes(issuer.public_pem)
    for keys in (pem, write_jwks(tmp_path / "keys.json", issuer.jwk)):
        assert TokenVerifier(replace(config, keys=keys)).verify(issuer.token()).tenant == "acme"


def test_keys_are_read_again_when_the_file_changes(config: JwtConfig, issuer: Issuer) -> None:
    assert config.keys is not None
    verifier, second = TokenVerifier(config), Issuer("k2")
    assert cause(verifier, second.token()) == "token signed by no key of ours"
    write_jwks(config.keys, second.jwk, {"kty": "EC", "use": "enc"})
    assert verifier.verify(second.token()).tenant == "acme"
    assert cause(verifier, issuer.token()) == "token signed by no key of ours"
    config.keys.write_text("{")  # somebody is writing it
    assert verifier.verify(second.token()).tenant == "acme"


def test_claims_may_lie_deeper_and_more_may_be_required(config: JwtConfig, issuer: Issuer) -> None:
    deeper = replace(
        config, tenant_claim="org.id", admin_claim="realm.roles", admin_value="boss", required_claims=("org.plan",)
    )
    verifier = TokenVerifier(deeper)
    org = {"id": "acme", "plan": "gold"}
    assert verifier.verify(issuer.token(org=org)) == Claims("acme", "user of acme", False)
    assert verifier.verify(issuer.token(org=org, realm={"roles": ["x", "boss"]})).admin is True
    for roles in ("bossy", ["bossy"], {"boss": 1}, 7, None):
        assert verifier.verify(issuer.token(org=org, realm={"roles": roles})).admin is False
    assert "required claim" in cause(verifier, issuer.token(org={"id": "acme"}))
    assert "no tenant" in cause(verifier, issuer.token(org={"plan": "gold"}))


def test_unsafe_keys_and_settings_are_refused(config: JwtConfig, issuer: Issuer, tmp_path: Path) -> None:
    def refused(match: str, content: bytes | None = None, **changes: Any) -> None:
        if content is not None:
            (tmp_path / "bad").write_bytes(content)
            changes["keys"] = tmp_path / "bad"
        with pytest.raises(ConfigError, match=match) as caught:
            TokenVerifier(replace(config, **changes))
        assert "PRIVATE" not in str(caught.value)

    algorithm: Any = jwt.get_algorithm_by_name("ES256")
    private = {**algorithm.to_jwk(issuer.key, as_dict=True), "kid": "p"}
    weak = Issuer("w", "RS256", rsa.generate_private_key(65537, 1024))
    pem = issuer.public_pem.replace(b"PUBLIC", b"PRIVATE")
    refused("private key", pem)
    refused("private key", json.dumps({"keys": [private]}).encode())
    refused("1024 bits", weak.public_pem)
    refused(
        "secret of 5 bytes", json.dumps({"keys": [{"kty": "oct", "k": _b64(b"short")}]}).encode(), algorithms=("HS256",)
    )
    refused("got 0 keys", issuer.public_pem, algorithms=("RS256",))
    refused("got 0 keys", issuer.public_pem, algorithms=("HS256",))
    refused("damaged", b"{}")
    refused("damaged", b"-----BEGIN PUBLIC KEY-----\n!\n-----END PUBLIC KEY-----")
    refused("No such file", keys=tmp_path / "absent")
    refused("need some of", algorithms=("none",))
    refused("need some of", algorithms=())
    refused("need jwt.keys", issuer="")
    refused("need jwt.keys", audience="")


def test_authorization_is_exactly_one_bearer_token() -> None:
    assert bearer_token({}) is None
    assert bearer_token({"authorization": ["bearer abc"]}) == "abc"
    for values in (["Basic abc"], ["Bearer"], ["Bearer "], ["Bearer a", "Bearer a"], ["Bearer " + "a" * 9000], [""]):
        with pytest.raises(NotAuthenticated):
            bearer_token({"authorization": values})
