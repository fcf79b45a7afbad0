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
    "polynomial": {"training": {"epochs": 4, "learning_rate": 2e-3}},
    "pruning": {"structure": "diagonal", "density": 0.5, "training": {"epochs": 4, "learning_rate": 2e-3}},
    "quantization": {"bits": 8},
}


def make(table: dict[str, object]) -> tuple[CompressedModel, Plan]:
    """The compressed network of a recipe, and its plan. No torch is needed from the first on."""
    model = compress(None, Recipe.from_dict(table), load("digits"), quiet=True)
    return model, compile(model)


def main() -> None:
    pruned, small = make(RECIPE)
    _, large = make({key: value for key, value in RECIPE.items() if key != "pruning"})
    print("\n".join(small.listing().splitlines()[:12]))
    print("accuracy by stage:", pruned.metadata["accuracy"])
    print("pruned  ", leaf_totals(small.counts))
    print("unpruned", leaf_totals(large.counts))
    # Whole diagonals are what a packed matrix product is made of, so pruning them removes work, not only weights.
    assert leaf_totals(small.counts)["mul_plain"] < leaf_totals(large.counts)["mul_plain"]
    assert pruned.metadata["accuracy"]["final"] > 0.8


if __name__ == "__main__":
    main()
