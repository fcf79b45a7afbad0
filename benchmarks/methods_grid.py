"""What `methods.py` compares: the training budget of each network, and one row of settings per method.

Every method gets the same number of epochs after the same teacher and the same quadratics, at the same learning rate and
batch size, however it divides them. Its other settings are its defaults, but for the one that sets how much is saved.
To add a method: one row in ROWS.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from model_prep.methods import METHODS
from model_prep.networks import NETWORKS
from model_prep.recipe import Recipe
from secateur.sweep_run import COLUMN, DIAGONAL

__all__ = ["BACKEND", "BUDGETS", "DENSE", "OURS", "ROWS", "Budget", "Candidate", "Row", "candidates", "missing"]

BACKEND = "tenseal"  # whose latencies are compared, unless another is asked for
DENSE = "dense"  # the row that all others are compared with
OURS = "diagrid"  # the one that is to beat them
Settings = dict[str, Any]


@dataclass(frozen=True)
class Budget:
    """Epochs of the teacher, of the quadratics, and of what follows; `rounds` for methods that train in rounds."""

    teacher: int
    quadratics: int
    epochs: int
    rounds: int
    learning_rate: float
    batch_size: int
    seeds: tuple[int, ...]
    no_column: str = ""  # why column packing is not tried

    def training(self, epochs: int) -> Settings:
        return {"epochs": epochs, "learning_rate": self.learning_rate, "batch_size": self.batch_size}

    def whole(self, value: Any = None) -> Settings:
        """The whole budget in one run."""
        return {"training": self.training(self.epochs)}

    def in_rounds(self, share: float = 0.5) -> Settings:
        """Up to that share of the budget in equal rounds, the rest for retraining."""
        each = max(1, int(share * self.epochs / self.rounds))
        rest = self.epochs - self.rounds * each
        return {"rounds": self.rounds, "training": self.training(each), "retraining": self.training(rest)}


_DIGITS = Budget(teacher=60, quadratics=30, epochs=60, rounds=4, learning_rate=4e-3, batch_size=64, seeds=(0, 1, 2))
_WIDE = "not tried: planning alone takes minutes, and a convolution with 6,272 outputs needs as many ciphertexts"
_LENET = Budget(
    teacher=4, quadratics=4, epochs=8, rounds=2, learning_rate=1e-3, batch_size=128, seeds=(0,), no_column=_WIDE
)
_MLP = Budget(
    teacher=15, quadratics=10, epochs=30, rounds=4, learning_rate=1e-3, batch_size=128, seeds=(0, 1, 2),
    no_column="not tried: 118,016 products of 4,096 queries",
)  # fmt: skip
BUDGETS: dict[str, Budget] = {
    "digits-mlp": _DIGITS, "digits-cnn": _DIGITS, "mnist-mlp": _MLP, "mnist-lenet": _LENET
}  # fmt: skip
IMAGES = ("digits-cnn", "mnist-lenet")  # networks with convolutions


@dataclass(frozen=True)
class Row:
    """One method: `values` of the setting `variable` on digits, `lenet` on LeNet, all else from `settings`.

    `packing` is the one in which the method's structure saves operations, by its card. With `before` the method stands
    where the quadratics would, and the rest of the budget trains its network on. `removed` names activations that are taken
    out first, so that their neighbours merge; the others become quadratics as for every method.
    """

    method: str
    packing: str
    variable: str
    values: tuple[Any, ...]
    lenet: tuple[Any, ...]
    settings: Callable[[Budget, Any], Settings] = Budget.whole
    fixed: Mapping[str, Any] = field(default_factory=dict)
    networks: tuple[str, ...] = tuple(BUDGETS)
    before: bool = False
    removed: tuple[str, ...] = ()


def _rounds(budget: Budget, value: Any) -> Settings:
    return budget.in_rounds()


def _crossbars(budget: Budget, value: Any) -> Settings:
    """A third for the rounds, a third in as many runs as there are shares to map, the rest for retraining."""
    shares = (0.5, 0.8, 1.0) if budget.epochs >= 30 else (1.0,)
    rounds, mapping = max(1, budget.epochs // 3 // budget.rounds), max(1, budget.epochs // 3 // len(shares))
    rest = budget.epochs - rounds * budget.rounds - mapping * len(shares)
    trained = {"training": rounds, "mapping": mapping, "retraining": rest}
    return {"rounds": budget.rounds, "shares": shares} | {name: budget.training(n) for name, n in trained.items()}


def _levels(budget: Budget, bits: int) -> Settings:
    """The budget in equal parts for the rungs of the ladder, each half for its rounds and half for settling, and for the finish."""
    ladder = {8: (8,), 2: (8, 2), 1: (8, 4, 2, 1)}[bits]
    runs = 3 if budget.epochs >= 30 else 1
    part = budget.epochs // (len(ladder) + 1) // runs
    finish = budget.training(budget.epochs - len(ladder) * runs * part)
    rounds = {"rounds": runs, "training": budget.training(part // 2), "hard": False, "rho": 1e-2, "growth": 1.5}
    shares = (0.5, 0.8, 1.0) if runs == 3 else (1.0,)
    settle = {"training": budget.training(part - part // 2), "shares": shares}
    admm = {**rounds, "rescale": True, "tolerance": 0.0}
    return {"ladder": ladder, "admm": admm, "settle": settle, "finish": finish}


def _named(name: str) -> Callable[[Budget, Any], Settings]:
    """`_rounds` for a method that trains in rounds on one of several structures."""
    return lambda budget, value: {**budget.in_rounds(), "structure": name, "level_training": budget.training(0)}


def _progressive(budget: Budget, density: float) -> Settings:
    """Two steps of half the budget each: half of that in rounds, half for retraining."""
    rounds, part = (3, budget.epochs // 2) if budget.epochs >= 30 else (2, budget.epochs // 2)
    each = max(1, part // 2 // rounds)
    admm = {"rounds": rounds, "training": budget.training(each), "rho": 1e-2, "growth": 1.5}
    return {"densities": (density**0.5, density), "admm": admm, "training": budget.training(part - rounds * each)}


_SHARES = (0.5, 0.25, 0.1, 0.05)
ROWS: dict[str, Row] = {
    DENSE: Row("magnitude", DIAGONAL, "density", (1.0,), (1.0,)),
    "polynomials": Row("polynomials", DIAGONAL, "degree", (2, 3), (3,), before=True),
    "magnitude": Row("magnitude", COLUMN, "density", _SHARES, (0.1, 0.02)),
    "progressive": Row("progressive", COLUMN, "density", _SHARES, (0.1, 0.02), _progressive),
    "trace": Row("trace", COLUMN, "ratio", (0.25, 0.5, 0.75), (0.5, 0.75)),
    "diagonals": Row("diagonals", DIAGONAL, "density", _SHARES, (0.25, 0.1)),
    OURS: Row(
        "diagrid", DIAGONAL, "target_share", (0.75, 0.6, 0.5, 0.25, 0.15), (0.35, 0.12), fixed={"backend": BACKEND}
    ),
    "gather-scatter": Row("gather-scatter", DIAGONAL, "density", _SHARES, (0.25, 0.125)),
    "gather-scatter-removed": Row(
        "gather-scatter", DIAGONAL, "density", _SHARES[1:], (), networks=("mnist-mlp",), removed=("relu",)
    ),
    "block-lasso": Row("block-lasso", COLUMN, "density", _SHARES[:3], (0.25, 0.1), _rounds),
    "block-reweighted": Row("block-reweighted", COLUMN, "density", _SHARES[:3], (0.25, 0.1), _rounds),
    "unified-weights": Row("unified", COLUMN, "density", _SHARES, (0.1, 0.02), _named("weight")),
    "unified-rows": Row("unified", COLUMN, "density", (0.5, 0.25), (0.5, 0.25), _named("row")),
    "patterns": Row("patterns", COLUMN, "connectivity", (1.0, 0.5, 0.25), (0.5, 0.25), _rounds, networks=IMAGES),
    "crossbars": Row("crossbars", COLUMN, "density", (0.5, 0.25), (0.25, 0.125), _crossbars),
    "integers": Row("integers", COLUMN, "bits", (8, 4), (8, 4)),
    "levels": Row("levels", COLUMN, "bits", (8, 2, 1), (2, 1), _levels),
}
_NOT_A_SETTING = {"levels": "bits", "progressive": "density"}  # a value that `settings` has turned into others


@dataclass(frozen=True)
class Candidate:
    """One network compressed in one way with one seed."""

    network: str
    row: str
    value: Any
    packing: str
    recipe: Recipe

    @property
    def digest(self) -> str:
        """Of the recipe: what decides the weights, but for code and data."""
        return hashlib.sha256(json.dumps(self.recipe.to_dict(), sort_keys=True).encode()).hexdigest()[:32]

    @property
    def setting(self) -> str:
        return f"{ROWS[self.row].variable} {self.value}"


def candidates(networks: Sequence[str], rows: Sequence[str]) -> Iterator[Candidate]:
    """All of the benchmark whose methods the registry has, network by network, seed by seed."""
    for network in networks:
        budget = BUDGETS[network]
        for name in rows:
            row = ROWS[name]
            if row.method not in METHODS or network not in row.networks:
                continue
            for value in row.lenet if network == "mnist-lenet" else row.values:
                for seed in budget.seeds:
                    yield Candidate(network, name, value, row.packing, _recipe(network, name, value, seed))


def missing() -> dict[str, list[str]]:
    """Rows whose method is not registered, and registered methods that no row compares."""
    compared = {row.method for row in ROWS.values()} | {"quadratics"}
    return {
        "not registered": sorted({row.method for row in ROWS.values()} - set(METHODS)),
        "not compared": sorted(set(METHODS) - compared),
    }


def _recipe(network: str, name: str, value: Any, seed: int) -> Recipe:
    budget, row = BUDGETS[network], ROWS[name]
    settings = {"method": row.method, **row.fixed, **row.settings(budget, value)}
    if _NOT_A_SETTING.get(row.method) != row.variable:
        settings[row.variable] = value
    quadratics = {"method": "quadratics", "training": budget.training(budget.quadratics)}
    if row.removed:
        quadratics |= {"method": "polynomials", "remove": row.removed}
    if row.before:
        settings["training"] = budget.training(budget.quadratics)
        steps = [settings, {"method": "magnitude", "density": 1.0, **budget.whole()}]
    else:
        steps = [quadratics, settings]
    return Recipe.from_dict(
        {
            "name": f"{network}-{name}-{value}",
            "network": network,
            "dataset": NETWORKS[network].dataset,
            "seed": seed,
            "teacher": {**budget.training(budget.teacher), "label_smoothing": 0.1},
            "steps": steps,
        }
    )
