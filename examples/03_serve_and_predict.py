"""Serve a model with TLS on loopback, and ask it from a client that trusts nothing but the pinned certificate."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from client import Client
from he_runtime import compile, run_clear
from he_runtime.reference import normalize
from model_prep.data import load
from model_prep.reference_models import random_reference
from server import ServerConfig, make_self_signed, start
from server.config import TlsConfig


def main() -> None:
    # A served model is a directory: <models>/<name>/<version>/ with the plan below it. (Random weights, so that this
    # example needs no training; `secateur compress digits-cnn` makes a trained one.)
    model = random_reference("digits-cnn")
    plan = compile(model)
    image = load("digits").x_test[0].astype(np.float64)

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        directory = root / "models" / model.name / "1"
        model.save(directory)
        plan.save(directory / "plan")
        certificate, private_key = make_self_signed(root / "tls")
        config = ServerConfig(
            address="127.0.0.1:0",  # any free port
            models=root / "models",
            state=root / "state",
            log_level="warning",
            tls=TlsConfig(enabled=True, certificate=certificate, private_key=private_key),
        )
        with (
            start(config) as running,
            Client.connect(running.address, certificate=certificate, home=root / "client") as client,
        ):
            print("offered:", [summary.name for summary in client.models()])
            first = client.predict(model.name, image)  # makes and uploads the keys, once
            second = client.predict(model.name, image)

    clear = run_clear(plan, normalize(model.input, image[None]))[0]
    print(f"label {second.label}, {second.up_bytes:,} bytes up, {second.down_bytes:,} down")
    print(f"keys sent: {first.uploaded_bytes:,} bytes the first time, {second.uploaded_bytes:,} afterwards")
    assert second.index == int(clear.argmax())
    assert np.abs(second.logits - clear).max() <= second.error_bound
    assert first.key_bytes > 0
    assert second.uploaded_bytes == 0


if __name__ == "__main__":
    main()
