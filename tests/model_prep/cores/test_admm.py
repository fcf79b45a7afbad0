"""ADMM: residuals, exact constraint sets, zeros, warm starts, several constraints."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from he_runtime.errors import ModelError
from model_prep.cores.admm import Admm, Split, _penalty, admm, on_support
from model_prep.cores.masked import retrain
from model_prep.cores.session import set_masks, weights
from model_prep.masks import Mask
from model_prep.settings import Training
from model_prep.train import Diverged
from tests.model_prep.cores.sessions import SimpleSession

Projection = Callable[[np.ndarray], np.ndarray]
SHORT = Training(epochs=5, learning_rate=1e-2)
KEY = "fc2.weight"


def largest(count: int) -> Projection:
    def project(values: np.ndarray) -> np.ndarray:
        result = np.zeros(values.size)
        order = np.argsort(-np.abs(values).ravel(), kind="stable")[:count]
        result[order] = values.ravel()[order]
        return result.reshape(values.shape)

    return project


def binary(values: np.ndarray) -> np.ndarray:
    return np.abs(values).mean() * np.where(values < 0, -1.0, 1.0)


def eighth(session: SimpleSession) -> dict[str, Projection]:
    return {key: largest(w.size // 8) for key, w in weights(session.net).items()}


def test_residuals_fall_and_the_weights_end_in_the_set(session: SimpleSession, accuracy: Callable[..., float]) -> None:
    projections = eighth(session)
    dense = accuracy(session)
    report = admm(session, projections, Admm(SHORT, rounds=10, rho=1e-1))
    assert len(report.worst) == 10
    assert report.worst[-1] < 0.15 * report.worst[0]
    assert report.worst[-1] < 0.05
    for key, w in weights(session.net).items():
        assert np.array_equal(projections[key](w), w)
        assert np.count_nonzero(w) == w.size // 8 == report.keep[key].sum()
    retrain(session, Mask(report.keep, "unstructured"), Training(epochs=4, learning_rate=3e-3))
    assert accuracy(session) > dense - 0.03


def test_training_towards_the_set_beats_cutting_at_once(session: SimpleSession, accuracy: Callable[..., float]) -> None:
    start = {key: torch.tensor(w).float() for key, w in weights(session.net).items()}
    admm(session, eighth(session), Admm(SHORT, rounds=10, rho=1e-1))
    trained = accuracy(session)
    for key, w in start.items():
        session.net.parameter(key).data.copy_(w)
    report = admm(session, eighth(session), Admm(rounds=0))  # no round: the projection alone
    assert report.residuals == () and report.worst == ()
    assert trained > accuracy(session) + 0.1


def test_zeros_of_a_mask_are_never_revived(session: SimpleSession) -> None:
    """Sign maps zero to a level: without the mask every zero would come back."""
    keep = {key: np.random.default_rng(3).random(w.shape) < 0.3 for key, w in weights(session.net).items()}
    set_masks(session.net, keep)
    seen: list[bool] = []
    fit = session.fit

    def watched(*arguments: object) -> None:
        fit(*arguments)  # type: ignore[arg-type]
        seen.append(all((w[~keep[key]] == 0).all() for key, w in weights(session.net).items()))

    session.fit = watched  # type: ignore[method-assign,assignment]
    projections = {key: on_support(binary, keep[key]) for key in keep}
    report = admm(session, {**projections, KEY: binary}, Admm(SHORT, rounds=3, rho=1e-1))
    assert seen == [True] * 3
    for key, w in weights(session.net).items():
        assert np.array_equal(w != 0, keep[key]) and np.array_equal(report.keep[key], keep[key])
        assert len(np.unique(np.abs(w[keep[key]]))) == 1
        assert (report.state[key][0].auxiliary[~keep[key]] == 0).all()


def test_on_support_fits_levels_to_survivors_only() -> None:
    values, keep = np.array([[3.0, 0.0], [-1.0, 0.0]]), np.array([[True, False], [True, False]])
    assert on_support(binary, keep)(values).tolist() == [[2.0, 0.0], [-2.0, 0.0]]
    assert binary(values)[0, 0] == 1.0


def test_pruning_and_levels_hold_at_once(session: SimpleSession) -> None:
    count = weights(session.net)[KEY].size // 4

    def ternary(values: np.ndarray) -> np.ndarray:
        scale = np.abs(values).max() / 2
        return scale * np.clip(np.round(values / scale), -2, 2)

    splits = [Split(largest(count), name="cut"), Split(ternary, rho=2e-1, name="levels")]
    report = admm(session, {KEY: splits}, Admm(SHORT, rounds=8, rho=1e-1, growth=1.5))
    assert set(report.residuals[0]) == {f"{KEY}/cut", f"{KEY}/levels"}
    assert all(report.residuals[-1][name] < report.residuals[0][name] for name in report.residuals[0])
    w = weights(session.net)[KEY]
    assert np.count_nonzero(w) <= count
    assert len(np.unique(np.abs(w[w != 0]))) <= 2
    assert [s.rho for s in report.state[KEY]] == pytest.approx([1e-1 * 1.5**8, 2e-1 * 1.5**8])


def test_hard_projections_follow_each_other_and_zeros_stay(session: SimpleSession) -> None:
    """Signs know no zero, so what the cut made zero would come back; what a mask cuts elsewhere is cut as well."""
    keep = np.random.default_rng(4).random((64, 64)) < 0.5
    set_masks(session.net, {"fc1.weight": keep})
    report = admm(session, {KEY: [largest(500), binary]}, Admm(rounds=0))
    w = weights(session.net)
    assert np.count_nonzero(w[KEY]) == 500 == report.keep[KEY].sum()
    assert len(np.unique(np.abs(w[KEY]))) == 2
    assert np.array_equal(w["fc1.weight"] != 0, keep)


def test_the_penalty_is_the_squared_norm_with_its_closed_gradient(session: SimpleSession) -> None:
    """rho/2 ||W - Z + U||^2 has gradient rho (W - Z + U); the un-squared norm would have one of length rho/2."""
    report = admm(session, {KEY: largest(100)}, Admm(SHORT, rounds=1, rho=0.5, growth=1.0, hard=False))
    state, parameter = report.state[KEY][0], session.net.parameter(KEY)
    residual = weights(session.net)[KEY] - state.auxiliary + state.dual
    parameter.grad = None
    value = _penalty(session.net, report.state)()
    value.backward()
    assert float(value.detach()) == pytest.approx(0.25 * np.sum(residual**2), rel=1e-5)
    assert parameter.grad is not None
    assert np.allclose(parameter.grad.numpy(), 0.5 * residual, atol=1e-7)


def test_one_round_updates_z_and_u_by_the_book(session: SimpleSession) -> None:
    project = largest(200)
    first = project(weights(session.net)[KEY])
    settings = Admm(SHORT, rounds=1, rho=0.1, growth=2.0, hard=False)
    scaled = admm(session, {KEY: project}, settings)
    w, state = weights(session.net)[KEY], scaled.state[KEY][0]
    assert np.array_equal(state.auxiliary, project(w)) and not np.array_equal(state.auxiliary, first)
    assert np.allclose(state.dual, (w - project(w)) / 2) and state.rho == pytest.approx(0.2)
    residual = np.linalg.norm(w - project(w)) / np.linalg.norm(w)
    assert scaled.residuals[0][KEY] == pytest.approx(residual)


@pytest.mark.parametrize("split", [1, 2])
def test_a_warm_start_goes_on_where_a_run_stopped(
    session: SimpleSession, dense: object, digits: tuple[np.ndarray, ...], split: int
) -> None:
    from model_prep.trainable import TrainableGraph

    def run(rounds: int, **options: object) -> Admm:
        return Admm(Training(epochs=1, learning_rate=1e-2), rounds=rounds, rho=1e-1, **options)  # type: ignore[arg-type]

    other = SimpleSession(TrainableGraph(dense), digits[0], digits[1], seed=1)  # type: ignore[arg-type]
    whole = admm(session, eighth(session), run(3))
    projections = eighth(other)
    part = admm(other, projections, run(split, hard=False))
    rest = admm(other, projections, run(3 - split), start=part.state)
    assert part.residuals + rest.residuals == whole.residuals
    assert all(np.array_equal(w, weights(other.net)[key]) for key, w in weights(session.net).items())


def test_rounds_end_early_within_the_tolerance(session: SimpleSession) -> None:
    report = admm(session, {KEY: lambda w: w}, Admm(Training(), rounds=5, tolerance=1e-3))
    assert report.worst == (0.0,)


def test_divergence_names_the_round(session: SimpleSession) -> None:
    before = weights(session.net)
    with pytest.raises(Diverged, match="'ADMM 1/2': the penalty is not finite at step 0"):
        admm(session, {KEY: largest(9)}, Admm(SHORT, rounds=2), penalty=lambda: torch.tensor(math.nan))
    assert all(np.array_equal(w, before[key]) for key, w in weights(session.net).items())


@pytest.mark.parametrize(
    ("projections", "message"),
    [
        ({}, "no constraint"),
        ({"nope": largest(1)}, r"constraints of arrays: got \['nope'\]"),
        ({KEY: lambda w: w[:2]}, r"projection '' of 'fc2.weight': got shape \(2, 64\), need \(64, 64\)"),
        ({KEY: lambda w: w * np.nan}, "not finite"),
    ],
    ids=["none", "unknown", "shape", "nan"],
)
def test_bad_constraints_are_refused(session: SimpleSession, projections: dict[str, Projection], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        admm(session, projections, Admm(SHORT))


@pytest.mark.parametrize("bad", [{"rho": 0.0}, {"growth": 0.5}, {"rounds": -1}, {"tolerance": -1.0}], ids=str)
def test_bad_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ModelError, match=next(iter(bad))):
        Admm(**bad)  # type: ignore[arg-type]


def test_a_state_of_other_constraints_is_refused(session: SimpleSession) -> None:
    state = admm(session, {KEY: largest(9)}, Admm(rounds=0)).state
    with pytest.raises(ModelError, match="start of ADMM"):
        admm(session, {KEY: [largest(9), binary]}, Admm(rounds=1), start=state)
