"""Compress a torch module by a recipe, and read the encrypted program that comes out. Runs in seconds."""

from __future__ import annotations

from he_runtime import CompressedModel, Plan, compile
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
DIAGONALS = {"method": "diagonals", "density": 0.5, "training": TRAINING}
INTEGERS = {"method": "integers", "bits": 8}


def make(*steps: dict[str, object]) -> tuple[CompressedModel, Plan]:
    """The network compressed in these steps, and its plan. No torch is needed from the first on."""
    model = compress(None, Recipe.from_dict({**RECIPE, "steps": steps}), load("digits"), quiet=True)
    return model, compile(model)


def main() -> None:
    pruned, small = make(QUADRATICS, DIAGONALS, INTEGERS)
    _, large = make(QUADRATICS, INTEGERS)
    print("\n".join(small.listing().splitlines()[:12]))
    print("accuracy by step:", pruned.metadata["accuracy"])
    print("pruned  ", leaf_totals(small.counts))
    print("unpruned", leaf_totals(large.counts))
    # Whole diagonals are what a packed matrix product is made of, so pruning them removes work, not only weights.
    assert leaf_totals(small.counts)["mul_plain"] < leaf_totals(large.counts)["mul_plain"]
    assert pruned.metadata["accuracy"]["final"] > 0.8


if __name__ == "__main__":
    main()
