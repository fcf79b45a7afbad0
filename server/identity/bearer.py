"""Bearer tokens: JSON Web Tokens, verified with keys of the configuration and nothing from the network.

The allowed algorithms are the configuration's, each bound to its kind of key: a token cannot choose to be verified as
something else, and never goes unverified. No text of a token leaves this module but the three claims that are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jwt

from ..errors import ConfigError
from .jwks import ALGORITHMS, VerificationKey, read_keys
from .refusal import NotAuthenticated
from .reload import Reloading
from .settings import JwtConfig

__all__ = ["Claims", "TokenVerifier", "bearer_token"]

_MAX_TOKEN_BYTES = 8192
_CAUSES: tuple[tuple[type[Exception], str], ...] = (
    (jwt.ExpiredSignatureError, "token expired"),
    (jwt.ImmatureSignatureError, "token not yet valid"),
    (jwt.InvalidAudienceError, "token for another audience"),
    (jwt.InvalidIssuerError, "token of another issuer"),
    (jwt.MissingRequiredClaimError, "token without a required claim"),
    (jwt.InvalidSignatureError, "token signature wrong"),
)


@dataclass(frozen=True)
class Claims:
    """What a verified token says. `admin` is None where the configuration asks no token about it."""

    tenant: str
    subject: str
    admin: bool | None


def bearer_token(metadata: Mapping[str, list[str]]) -> str | None:
    """The token of a call; None without one. Raises NotAuthenticated for anything but exactly one bearer token."""
    values = metadata.get("authorization", [])
    if not values:
        return None
    scheme, _, token = values[0].partition(" ")
    token = token.strip()
    if len(values) > 1 or scheme.lower() != "bearer" or not token or len(token) > _MAX_TOKEN_BYTES:
        raise NotAuthenticated("authorization is not one bearer token")
    return token


class TokenVerifier:
    """Verifies tokens by one configuration. Raises ConfigError where that cannot be done safely."""

    def __init__(self, config: JwtConfig) -> None:
        self._config = config
        self._keys = _reloading(config)
        self._options: Any = {
            "require": ["exp", "iss", "aud", "sub", *(n for n in config.required_claims if "." not in n)],
            "enforce_minimum_key_length": True,
        }

    def verify(self, token: str) -> Claims:
        """The claims of a token that holds now; NotAuthenticated with the cause for any other."""
        try:
            header = jwt.get_unverified_header(token)
        except jwt.InvalidTokenError:
            raise NotAuthenticated("token unreadable") from None
        algorithm, key_id = header.get("alg"), header.get("kid", "")
        if algorithm not in self._config.algorithms or not isinstance(key_id, str):
            raise NotAuthenticated("token algorithm not allowed")
        for key in self._keys.get():
            if key.fits(algorithm, key_id):
                claims = self._decoded(token, key, algorithm)
                if claims is not None:
                    return self._read(claims)
        raise NotAuthenticated("token signed by no key of ours")

    def _decoded(self, token: str, key: VerificationKey, algorithm: str) -> dict[str, Any] | None:
        """The payload once everything about it holds; None when another key signed it."""
        try:
            payload: dict[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=[algorithm],  # of the configuration's, and fitting this key
                issuer=self._config.issuer,
                audience=self._config.audience,
                leeway=self._config.leeway_seconds,
                options=self._options,
            )
            return payload
        except jwt.InvalidSignatureError:
            return None
        except Exception as error:  # a hostile payload may trip the library otherwise; nothing of it is passed on
            cause = next((text for kind, text in _CAUSES if isinstance(error, kind)), "token malformed")
            raise NotAuthenticated(cause) from None

    def _read(self, claims: dict[str, Any]) -> Claims:
        config = self._config
        for name in config.required_claims:
            if _claim(claims, name) is None:
                raise NotAuthenticated("token without a required claim")
        tenant = _claim(claims, config.tenant_claim)
        if not isinstance(tenant, str):
            raise NotAuthenticated("token names no tenant")
        admin: bool | None = None
        if config.admin_claim:
            stated = _claim(claims, config.admin_claim)
            admin = config.admin_value in stated if isinstance(stated, list) else stated == config.admin_value
        return Claims(tenant, str(claims["sub"]), admin)


def _reloading(config: JwtConfig) -> Reloading[tuple[VerificationKey, ...]]:
    if config.keys is None or not config.issuer or not config.audience:
        raise ConfigError("cannot verify tokens: need jwt.keys, jwt.issuer and jwt.audience")
    unknown = [name for name in config.algorithms if name not in ALGORITHMS]
    if unknown or not config.algorithms:
        raise ConfigError(
            f"cannot use jwt.algorithms = {list(config.algorithms)}: need some of {', '.join(ALGORITHMS)}"
        )
    path = config.keys
    return Reloading("jwt.keys", [path], lambda: read_keys(path, config.algorithms))


def _claim(claims: Any, name: str) -> Any:
    """A top-level claim of that very name, or else what a path with dots leads to; None where there is nothing."""
    if name in claims:
        return claims[name]
    for part in name.split("."):
        claims = claims.get(part) if isinstance(claims, dict) else None
    return claims
