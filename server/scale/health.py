"""`python -m server.scale.health ADDRESS`: what containers and orchestrators probe with; exits with 0 while it serves.

Kubernetes' own gRPC probes speak no TLS.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m server.scale.health", description="Ask a server how it is.")
    parser.add_argument("address", help="host:port, or unix:path")
    parser.add_argument("--service", default="readiness", help="readiness, liveness or model/<name>")
    parser.add_argument("--ca", type=Path, help="PEM file: speak TLS, and trust these roots")
    parser.add_argument("--name", help="the name in the server's certificate, where it is not the address")
    parser.add_argument("--certificate", type=Path, help="client certificate, for a port that demands one")
    parser.add_argument("--key", type=Path, help="its private key")
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args(arguments)
    try:
        with _channel(options) as channel:
            request = health_pb2.HealthCheckRequest(service=options.service)
            reply = health_pb2_grpc.HealthStub(channel).Check(request, timeout=options.seconds)
    except (OSError, ValueError, grpc.RpcError) as error:
        code = error.code() if isinstance(error, grpc.Call) else error
        print(f"cannot ask {options.address}: {code}", file=sys.stderr)
        return 1
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
    print(status)
    return 0 if reply.status == health_pb2.HealthCheckResponse.SERVING else 1


def _channel(options: argparse.Namespace) -> grpc.Channel:
    if options.ca is None:
        return grpc.insecure_channel(options.address)
    own = [path.read_bytes() if path else None for path in (options.key, options.certificate)]
    credentials = grpc.ssl_channel_credentials(options.ca.read_bytes(), *own)
    override = [("grpc.ssl_target_name_override", options.name)] if options.name else []
    return grpc.secure_channel(options.address, credentials, options=override)


if __name__ == "__main__":
    sys.exit(main())
