"""Settings of TLS, identity and tokens that contradict each other are found by the check and keep a server from starting."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from authority import Authority, Issuer
from harness import make_config
from tenancy import configured

from server.admin.settings import AdminConfig
from server.checks import check
from server.errors import ConfigError
from server.identity.settings import IdentityConfig, JwtConfig, TlsConfig
from server.running import start

PROBLEMS: dict[str, tuple[dict[str, Any], str]] = {
    "certificates on a socket": (
        {"identity": IdentityConfig("mtls"), "admin": AdminConfig(address="unix:/x")},
        "nobody could administer",
    ),
    "anonymous beyond loopback": ({"address": "0.0.0.0:0"}, "identity.anonymous_on_network"),
    "mtls without certificates": ({"identity": IdentityConfig("mtls")}, "need required"),
    "both without certificates": ({"identity": IdentityConfig("both")}, "need required"),
    "either without certificates": ({"identity": IdentityConfig("either")}, "need optional"),
    "jwt without keys": ({"identity": IdentityConfig("jwt")}, "jwt.keys is not set"),
    "keys without jwt": ({"jwt": JwtConfig(Path("x"))}, "jwt.keys is set although"),
    "jwt in the clear": ({"address": "0.0.0.0:0", "identity": IdentityConfig("jwt")}, "has no TLS"),
    "two sorts of algorithms": (
        {"identity": IdentityConfig("jwt"), "jwt": JwtConfig(algorithms=("RS256", "HS256"))},
        "need one sort",
    ),
    "ca without tls": ({"tls": TlsConfig(client_ca=Path("x"))}, "tls.enabled is false although tls.client_ca"),
    "auth without tls": ({"tls": TlsConfig(client_auth="required")}, "although tls.client_auth"),
    "ca without auth": ({"tls": TlsConfig(True, client_ca=Path("x"))}, "although tls.client_auth is none"),
    "auth without ca": ({"tls": TlsConfig(True, client_auth="required")}, "tls.client_ca is not set"),
    "optional on one port": ({"tls": TlsConfig(True, client_auth="optional")}, "tls.mutual_address is not set"),
    "two ports for one sort": (
        {"tls": TlsConfig(True, client_auth="required", mutual_address="unix:/x")},
        "tls.mutual_address is set",
    ),
    "uri without prefix": (
        {"identity": IdentityConfig("mtls", certificate_tenant="uri", uri_prefix="spiffe://x")},
        "ends in /",
    ),
    "tenants of nobody": (
        {"identity": IdentityConfig(only_listed_tenants=True)},
        "although identity.mode is anonymous",
    ),
    "listed, but no list": ({"identity": IdentityConfig("jwt", only_listed_tenants=True)}, "no identity.tenants"),
    "subjects without certificates": (
        {"identity": IdentityConfig("jwt", admin_subjects=("x",))},
        "need jwt.admin_claim",
    ),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_settings_that_contradict_each_other_are_found_and_refused(tmp_path: Path, name: str) -> None:
    changes, said = PROBLEMS[name]
    config = replace(make_config(tmp_path), **changes)
    assert any(said in problem for problem in check(config)), check(config)
    with pytest.raises(ConfigError):
        start(config)


def test_good_settings_have_no_problems_and_bad_files_are_named(tmp_path: Path) -> None:
    ours, issuer = Authority(), Issuer()
    for settings in (
        {"client_auth": "required", "mode": "mtls"},
        {"mode": "jwt"},
        {"client_auth": "optional", "mutual_address": "unix:x.sock", "mode": "either"},
        {"client_auth": "required", "mode": "both"},
        {"client_auth": "required"},
    ):
        problems = check(configured(tmp_path, ours, issuer, **settings))
        assert not [p for p in problems if "11" not in p], "but for the broken version 11"
    config = configured(tmp_path, ours, issuer, client_auth="required", mode="both")
    assert config.tls.client_ca is not None and config.jwt.keys is not None
    config.tls.client_ca.write_text("none")
    config.jwt.keys.write_text("none")
    said = " ".join(check(config))
    assert "tls.client_ca" in said and "jwt.keys" in said
