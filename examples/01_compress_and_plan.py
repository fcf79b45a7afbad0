"""Compress a torch module by a recipe, and read the encrypted program that comes out. Runs in seconds."""

from __future__ import annotations

from he_runtime import CompressedModel, Plan, compile, price
from he_runtime.backends import default_backend
from he_runtime.cost import load_default
from he_runtime.plan.counts import leaf_totals
from model_prep import Recipe, compress
from model_prep.data import load

# A recipe is a TOML file; as a table it can also be written down here. Few epochs: this shows the way, not a record.
RECIPE = {
    "name": "small-digits",
    "network": "digits-mlp",
    "dataset": "digits",
    "teacher": {"epochs": 4, "learning_rate": 5e-3},
}
TRAINING = {"epochs": 4, "learning_rate": 2e-3}
QUADRATICS = {"method": "quadratics", "training": TRAINING}
DIAGRID = {"method": "diagrid", "target_share": 0.8, "training": {"epochs": 12, "learning_rate": 4e-3}}
INTEGERS = {"method": "integers", "bits": 8}


def make(*steps: dict[str, object]) -> tuple[CompressedModel, Plan]:
    """The network compressed in these steps, and its plan. No torch is needed from the first on."""
    model = compress(None, Recipe.from_dict({**RECIPE, "steps": steps}), load("digits"), quiet=True)
    return model, compile(model)


def main() -> None:
    pruned, small = make(QUADRATICS, DIAGRID, INTEGERS)
    _, large = make(QUADRATICS, INTEGERS)
    print("\n".join(small.listing().splitlines()[:12]))
    print("accuracy by step:", pruned.metadata["accuracy"])
    table = load_default(default_backend())
    pruned_ms, unpruned_ms = (price(plan, table).latency_ms for plan in (small, large))
    print(f"pruned   {pruned_ms:5.1f} ms", leaf_totals(small.counts))
    print(f"unpruned {unpruned_ms:5.1f} ms", leaf_totals(large.counts))
    # Pruned are the weights whose rotations and products the packing would pay for, so work goes, not only weights.
    assert pruned_ms < 0.9 * unpruned_ms
    assert pruned.metadata["accuracy"]["final"] > 0.8


if __name__ == "__main__":
    main()
