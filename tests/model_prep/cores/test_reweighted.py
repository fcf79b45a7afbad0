"""Reweighting: what the penalty counts, its gradient, caps, several groupings, costs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from he_runtime.errors import ModelError
from model_prep.cores.masked import retrain
from model_prep.cores.reweighted import Grouping, Reweighted, _penalties, group_norms, reweighted
from model_prep.cores.session import set_masks, weights
from model_prep.masks import Mask
from model_prep.settings import Training
from tests.model_prep.cores.sessions import SimpleSession

TRAINING = Training(epochs=8, learning_rate=1e-2)
KEY = "fc2.weight"


def columns(w: np.ndarray) -> np.ndarray:
    return np.tile(np.arange(w.shape[1]), (len(w), 1))


def rows(w: np.ndarray) -> np.ndarray:
    return columns(w.T).T.copy()


def diagonals(w: np.ndarray) -> np.ndarray:
    return (np.arange(w.shape[1])[None] - np.arange(len(w))[:, None]) % w.shape[1]


def all_columns(session: SimpleSession) -> dict[str, np.ndarray]:
    return {key: columns(w) for key, w in weights(session.net).items()}


def test_norms_agree_with_numpy_and_a_dead_group_has_gradient_zero() -> None:
    values = torch.tensor([3.0, 0.0, 4.0, 0.0, -2.0], requires_grad=True)
    labels = torch.tensor([0, 1, 0, 1, 2])
    norms = group_norms(labels, values, 4)
    assert norms.tolist() == [5.0, 0.0, 2.0, 0.0]
    norms.sum().backward()
    assert values.grad is not None and values.grad.tolist() == pytest.approx([0.6, 0.0, 0.8, 0.0, -1.0])
    assert group_norms(labels, values.detach(), 4, power=2).tolist() == [25.0, 0.0, 4.0, 0.0]


@pytest.mark.parametrize("power", [1, 2])
def test_the_gradient_is_the_closed_form(session: SimpleSession, power: int) -> None:
    """Power 1: sum over groupings of c_g / (n_g + eps) * W / n_g; power 2: 2 c_g W / (n_g^2 + eps)."""
    w = weights(session.net)[KEY]
    costs = np.linspace(0.5, 2.0, 64)
    settings = Reweighted(power=power, epsilon=0.05)
    groupings = [Grouping(columns(w), costs), Grouping(rows(w))]
    penalty = _penalties(session.net, {KEY: groupings}, settings)[KEY]
    count = penalty.refresh(settings, first=True)
    parameter = session.net.parameter(KEY)
    parameter.grad = None
    penalty().backward()
    by_column, by_row = np.linalg.norm(w, axis=0)[None, :], np.linalg.norm(w, axis=1)[:, None]
    if power == 1:
        expected = costs * w / (by_column * (by_column + 0.05)) + w / (by_row * (by_row + 0.05))
    else:
        expected = 2 * costs * w / (by_column**2 + 0.05) + 2 * w / (by_row**2 + 0.05)
    assert parameter.grad is not None
    assert np.allclose(parameter.grad.numpy(), expected, rtol=1e-4, atol=1e-6)
    share = [n**power / (n**power + 0.05) for n in (by_column[0], by_row[:, 0])]
    assert count == pytest.approx(float(np.sum(costs * share[0]) + np.sum(share[1])), rel=1e-5)


@pytest.mark.parametrize(
    "label", [columns, rows, diagonals, lambda w: np.arange(w.size).reshape(w.shape)], ids=["c", "r", "d", "w"]
)
@pytest.mark.parametrize("power", [1, 2])
def test_the_penalty_counts_living_groups(
    session: SimpleSession, label: Callable[[np.ndarray], np.ndarray], power: int
) -> None:
    labels = {key: label(w) for key, w in weights(session.net).items()}
    keep = {key: (at % 3 != 0) for key, at in labels.items()}
    set_masks(session.net, keep)
    alive = sum(len(np.unique(at[keep[key]])) for key, at in labels.items())
    report = reweighted(session, labels, Reweighted(Training(), rounds=1, power=power, epsilon=1e-8))
    assert report.rounds[0].count == pytest.approx(alive, rel=2e-2)
    assert sum(report.rounds[0].living.values()) == pytest.approx(alive, rel=5e-2)


def test_groups_die_and_cutting_them_costs_little(session: SimpleSession, accuracy: Callable[..., float]) -> None:
    dense, labels = accuracy(session), all_columns(session)
    report = reweighted(session, labels, Reweighted(TRAINING, rounds=4, strength=6e-3))
    counts = [r.count for r in report.rounds]
    assert counts == sorted(counts, reverse=True) and counts[-1] < 0.8 * counts[0]
    living = report.rounds[-1].living
    assert sum(living.values()) < 0.8 * 192
    keep = {key: (report.norms[key][0] > 1e-3)[labels[key]] for key in labels}
    trained = accuracy(session)
    retrain(session, Mask(keep, "column"), Training())
    assert accuracy(session) >= trained - 0.01
    retrain(session, Mask(keep, "column"), Training(epochs=6, learning_rate=3e-3))
    assert accuracy(session) > dense - 0.03


def test_reweighting_beats_plain_group_lasso_at_equal_count(
    session: SimpleSession, accuracy: Callable[..., float]
) -> None:
    """The dynamic penalty leaves strong groups alone: after it, the weak half of the columns can go for less."""
    start = {key: torch.tensor(w).float() for key, w in weights(session.net).items()}

    def cut_half(settings: Reweighted) -> float:
        for key, w in start.items():
            session.net.parameter(key).data.copy_(w)
        session.net.masks, session.runs, labels = {}, 0, all_columns(session)
        report = reweighted(session, labels, settings)
        keep = {k: (n >= np.sort(n)[-28])[labels[k]] for k, (n,) in report.norms.items()}
        retrain(session, Mask(keep, "column"), Training())
        return accuracy(session)

    static = Training(epochs=32, learning_rate=1e-2)
    dynamic = cut_half(Reweighted(TRAINING, rounds=4, strength=6e-3))
    plain = [cut_half(Reweighted(static, rounds=1, strength=s, start="ones")) for s in (1e-4, 6e-4, 6e-3)]
    assert dynamic >= max(plain) and dynamic > 0.9


def test_a_cap_turns_lambda_off_and_ends_the_rounds(session: SimpleSession) -> None:
    labels = all_columns(session)
    caps = {"fc1.weight": 64, KEY: 50, "fc3.weight": 50}
    settings = Reweighted(Training(epochs=4, learning_rate=1e-2), rounds=12, strength=1e-2, caps=caps, tolerance=0.0)
    report = reweighted(session, labels, settings)
    for before, after in zip(report.rounds, report.rounds[1:], strict=False):
        for key, cap in caps.items():
            if before.living[key] <= cap:
                assert after.strengths[key] == 0 or after.living[key] > cap
            elif after.living[key] > cap:
                assert after.strengths[key] == 1e-2
    assert all(r.strengths["fc1.weight"] == 0 for r in report.rounds)  # within its cap from the start
    assert report.rounds[0].strengths[KEY] == 1e-2
    assert report.stopped == "caps" and len(report.rounds) < 12
    assert all(report.rounds[-1].living[key] <= cap for key, cap in caps.items())
    free = report.norms["fc1.weight"][0]
    assert free.min() > 0.1  # it was never shrunk


def test_a_dear_group_dies_before_a_cheap_one(session: SimpleSession) -> None:
    labels = columns(weights(session.net)[KEY])
    costs = np.where(np.arange(64) % 2 == 0, 4.0, 0.25)
    report = reweighted(session, {KEY: Grouping(labels, costs)}, Reweighted(TRAINING, rounds=3, strength=4e-3))
    norms = report.norms[KEY][0]
    assert norms[::2].mean() < 0.5 * norms[1::2].mean()
    assert (norms[::2] < 1e-3).sum() > (norms[1::2] < 1e-3).sum()


def test_several_groupings_of_one_array_add_up(session: SimpleSession) -> None:
    """Rows and columns of 16x16 blocks, as BLK-REW has them: both kinds die."""
    w = weights(session.net)[KEY]
    r, c = np.indices(w.shape)
    pieces = {"rows": r * 4 + c // 16, "columns": c * 4 + r // 16}
    report = reweighted(session, {KEY: list(pieces.values())}, Reweighted(TRAINING, rounds=4, strength=3e-3))
    assert report.rounds[0].count == pytest.approx(512, rel=0.02)
    after = weights(session.net)[KEY]
    for norms, labels in zip(report.norms[KEY], pieces.values(), strict=True):
        exact = np.sqrt(np.bincount(labels.ravel(), (after**2).ravel(), 256))
        assert np.allclose(norms, exact, atol=1e-5) and (norms < 1e-3).any()
    assert report.rounds[-1].living[KEY] == sum(int((n > 1e-3).sum()) for n in report.norms[KEY])


def test_zeros_of_a_mask_stay_zero(session: SimpleSession) -> None:
    keep = np.random.default_rng(0).random((64, 64)) < 0.5
    set_masks(session.net, {KEY: keep})
    reweighted(session, {KEY: columns(keep)}, Reweighted(TRAINING, rounds=1))
    assert (weights(session.net)[KEY][~keep] == 0).all()


def test_a_network_that_stands_still_ends_the_rounds(session: SimpleSession) -> None:
    report = reweighted(session, all_columns(session), Reweighted(Training(), rounds=5))
    assert report.stopped == "still" and len(report.rounds) == 1 and report.rounds[0].moved == 0


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        ({}, {}, "no groups"),
        ({"nope": np.zeros(1, int)}, {}, r"groups of arrays: got \['nope'\]"),
        ({KEY: np.zeros((2, 2), int)}, {}, r"labels of shape \(2, 2\), need \(64, 64\)"),
        ({KEY: np.zeros((64, 64))}, {}, "integers from 0"),
        ({KEY: np.full((64, 64), -1)}, {}, "integers from 0"),
        ({KEY: Grouping(np.full((64, 64), 2), np.ones(2))}, {}, r"costs of shape \(2,\), need \(3,\)"),
        ({KEY: Grouping(np.zeros((64, 64), int), np.array([np.nan]))}, {}, "costs below 0 or not finite"),
        ({KEY: np.zeros((64, 64), int)}, {"caps": {"fc1.weight": 3}}, r"caps of a reweighting: got \['fc1.weight'\]"),
    ],
    ids=["none", "unknown", "shape", "float", "negative", "costs", "nan", "caps"],
)
def test_bad_groups_are_refused(
    session: SimpleSession, labels: dict[str, np.ndarray], settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        reweighted(session, labels, Reweighted(**settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad",
    [{"power": 3}, {"epsilon": 0.0}, {"strength": -1.0}, {"rounds": -1}, {"start": "x"}, {"caps": {"a": -1}}],
    ids=str,
)
def test_bad_settings_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ModelError, match=next(iter(bad))):
        Reweighted(**bad)  # type: ignore[arg-type]
