"""Ask a server from asyncio: a batch with several requests in flight, and a job that is found again after a restart."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import numpy as np

from client import AsyncClient
from he_runtime import compile, run_clear
from he_runtime.reference import normalize
from model_prep.data import load
from model_prep.reference_models import random_reference
from server import ServerConfig, start


async def ask(address: str, home: Path, model: str, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    async with await AsyncClient.connect(address, home=home, retries=8, timeout=120) as client:
        answers = await client.predict(
            model, images, in_flight=3, items=lambda done, total: print(f"{done} of {total} answered")
        )
        job = await client.submit(model, images[0])
        print("job", job.name, "goes on without us")  # the name may be shown; job.id is a capability

    # Later, maybe in another program: what decrypts the result is in the key store.
    async with await AsyncClient.connect(address, home=home) as client:
        job = client.job(job.name)
        async for status in job.watch():
            print(f"{status.state}: layer {status.layer} of {status.layers} {status.layer_name}")
        result = await job.result(timeout=120)
        for keys in await client.keys():
            print(f"keys {keys.handle[:12]}: {keys.total_bytes:,} bytes at the server")
            await client.delete_keys(keys.params_digest)  # the secret here, and all that was made of it
        assert await client.keys() == []
    return answers.logits, result.logits


def main() -> None:
    model = random_reference("digits-mlp")
    plan = compile(model)
    images = load("digits").x_test[:5].astype(np.float64)

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        directory = root / "models" / model.name / "1"
        model.save(directory)
        plan.save(directory / "plan")
        config = ServerConfig(address="127.0.0.1:0", models=root / "models", state=root / "state", log_level="warning")
        with start(config) as running:
            answers, result = asyncio.run(ask(running.address, root / "client", model.name, images))

    clear = run_clear(plan, normalize(model.input, images))
    assert np.abs(answers - clear).max() <= plan.error_bound
    assert np.abs(result - clear[0]).max() <= plan.error_bound


if __name__ == "__main__":
    main()
