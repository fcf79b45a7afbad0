"""Objects of other rings are refused; those of equal rings are shared; and none needs another to stay alive."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tenseal")

from tests.kernel.evaluation import Machine
from tests.kernel.primes import primes_below
from tests.kernel.world import FOREIGN, HOME, N, World, world


@pytest.mark.parametrize("name", FOREIGN)
def test_objects_of_another_ring_are_refused(kernel: Any, name: str) -> None:
    home, other = world(kernel), world(kernel, FOREIGN[name])
    ring, x, task = home.ring, home.cipher(), home.task()
    alien, key = other.cipher(), other.key()
    calls: list[Callable[[], Any]] = [
        lambda: kernel.add(ring, x, alien, task),
        lambda: kernel.add(ring, alien, x, task),
        lambda: kernel.mul(ring, x, alien, task),
        lambda: kernel.square(ring, alien, task),
        lambda: kernel.rescale(ring, alien, task),
        lambda: kernel.mod_switch(ring, alien, task),
        lambda: kernel.relinearize(ring, home.cipher(1, 3), other.key(element=0), task),
        lambda: kernel.relinearize(ring, other.cipher(1, 3), home.key(element=0), task),
        lambda: kernel.apply_galois(ring, x, 3, key, task),
        lambda: kernel.apply_galois(ring, alien, 3, home.key(), task),
        lambda: kernel.rotate_hoisted(ring, x, [3], {3: key}, task),
        lambda: kernel.rotate_hoisted(ring, alien, [3], {3: home.key()}, task),
        lambda: home.run(inputs=[x, alien]),
        lambda: home.run(keys={3: key}),
        lambda: other.run(inputs=[x, x]),
    ]
    for plain in (other.plain(), other.plain(compact=True)):
        calls.append(partial(kernel.add_plain, ring, x, plain, task))
        calls.append(partial(kernel.mul_plain, ring, x, plain, task))
        calls.append(partial(home.transform, plains=[plain]))
    for call in calls:
        with pytest.raises(ValueError):
            call()


def test_rings_of_the_same_primes_share_their_objects(kernel: Any, paths: list[str]) -> None:
    """Two models on one parameter set may share a client's keys."""
    first, second = world(kernel), World(Machine.make(kernel, HOME[1], paths[0]))
    wanted = first.machine.download(first.run()[0][0])
    found, _ = first.transform().run([second.cipher(), second.cipher()], {3: second.key()}, second.task())
    np.testing.assert_array_equal(second.machine.download(found[0]), wanted)


def test_objects_outlive_the_ring_and_each_other(kernel: Any) -> None:
    home = world(kernel)
    transform, inputs, keys = home.transform(), [home.cipher(), home.cipher()], {3: home.key()}
    wanted = home.machine.download(transform.run(inputs, keys, kernel.Task())[0][0])
    del home
    (y,), _ = transform.run(inputs, keys, kernel.Task())
    del transform, inputs, keys
    kernel.release_cached()
    out = np.empty_like(wanted)
    kernel.download(y, out)
    np.testing.assert_array_equal(out, wanted)


@pytest.mark.parametrize(
    ("primes", "special", "alpha", "path"),
    [
        ([], 1, 1, "portable"),
        ([0], 0, 1, "portable"),
        ([0, 0], 1, 1, "portable"),
        ([0, 1], 1, 0, "portable"),
        ([0, 1], 1, 17, "portable"),
        ([0, 1], 1, 2, "portable"),  # a digit above the special prime
        ([0], 1, 1, "sse"),
        (list(range(64)), 1, 1, "portable"),  # 65 primes
    ],
)
def test_rings_that_cannot_be(kernel: Any, primes: list[int], special: int, alpha: int, path: str) -> None:
    found = primes_below(1 << 45, N, 70)
    with pytest.raises(ValueError):
        kernel.Ring(N, [found[k] for k in primes], found[66 : 66 + special], alpha, path)
    with pytest.raises(ValueError):
        kernel.Ring(N, [found[0] + 2], [found[1]], 1, "portable")
    with pytest.raises(ValueError):
        kernel.Ring(N + 8, [found[0]], [found[1]], 1, "portable")


def test_a_task_takes_something_to_call(kernel: Any) -> None:
    with pytest.raises((TypeError, RuntimeError)):
        kernel.Task(3)


def test_no_key_cannot_be_read(kernel: Any) -> None:
    home = world(kernel)
    with pytest.raises(ValueError):
        kernel.read_bandwidth(home.ring, [home.key(), None])
