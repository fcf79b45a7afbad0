"""Price a plan before any ciphertext exists: by the table that ships, then by one measured on this machine."""

from __future__ import annotations

from he_runtime import compile
from he_runtime.cost import load_default, price
from he_runtime.cost.calibrate import calibrate
from model_prep.reference_models import random_reference

BACKEND = "tenseal"


def main() -> None:
    table = load_default(BACKEND)
    plan = compile(random_reference("digits-cnn"), table=table)  # the cheapest by this back end's prices

    # The shipped table comes from another machine, so it claims an order of magnitude and says so.
    shipped = price(plan, table)
    print(f"shipped table:  {shipped.latency_ms:.0f} ms ({shipped.confidence})")

    # A few seconds of measuring single operations here give a real prediction.
    table = calibrate(BACKEND, plan.params, seconds=2.0, only=plan.counts)
    measured = price(plan, table)
    print(f"measured table: {measured.latency_ms:.0f} ms ({measured.confidence})")

    for layer in measured.layers:
        print(f"  {layer.name:10} {layer.ms:7.1f} ms  {dict(layer.counts)}")
    print(f"a request takes {measured.upload_bytes:,} bytes up and {measured.download_bytes:,} down,")
    print(f"keys {measured.key_bytes:,} bytes once; the evaluator holds {measured.peak_bytes / 1e6:.0f} MB at its peak")

    assert measured.low_ms <= measured.latency_ms <= measured.high_ms
    borders = measured.upload_ms + measured.download_ms
    assert abs(sum(layer.ms for layer in measured.layers) + borders - measured.latency_ms) < 1e-6
    # Rotations need a key switch each, which is why they, and not the products, are what a network should be built
    # to avoid.
    cost = {leaf: table.lookup(leaf, plan.params.degree, 0).seconds for leaf in ("rotate", "mul_plain")}
    assert cost["rotate"] > 4 * cost["mul_plain"]


if __name__ == "__main__":
    main()
