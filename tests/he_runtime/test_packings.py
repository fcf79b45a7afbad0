"""Packings that follow a layer's zeros, against closed forms: grouped layers, convolution grids, splits without giants."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse as sp

from he_runtime import compile
from he_runtime.layout import Layout, contiguous, image, interleaved
from he_runtime.lower.candidates import channel_groups
from he_runtime.lower.diagonals import DiagonalSet, diagonal_set
from he_runtime.lower.maps import LinearMap
from he_runtime.lower.split import best_split
from he_runtime.lower.stage_types import LinearStage
from he_runtime.lower.stages import build_stages
from tests.he_runtime.networks import Builder
from tests.he_runtime.packing_checks import SLOTS, assert_equals_graph, encrypted_error, packed


def conv_map(channels: int, outputs: int, kernel: int, groups: int, size: int = 8) -> LinearMap:
    b = Builder((channels, size, size))
    b.conv((channels, size, size), outputs, kernel, 1, kernel // 2, groups)
    (stage,) = build_stages(b.calibrated(), SLOTS)
    assert isinstance(stage, LinearStage)
    return stage.map


def block_diagonal(groups: int, rows: int, columns: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    return np.asarray(sp.block_diag([rng.normal(size=(rows, columns)) for _ in range(groups)]).toarray())


def grouped_convolutions(count: int = 1) -> Builder:
    """Convolutions of four groups after an ordinary one."""
    b = Builder((1, 8, 8))
    shape = b.conv((1, 8, 8), 16, 3, 1, 1)
    b.square(shape)
    for _ in range(count):
        shape = b.conv(shape, 16, 3, 1, 1, groups=4)
        b.arrays[f"{b.last}.weight"] *= 0.3
        b.square(shape)
    b.add("reshape", (1024,))
    b.dense(1024, 10)
    return b


def block_dense() -> Builder:
    """A dense layer that is block-diagonal, 8 blocks of 8 x 8, between ordinary ones."""
    b = Builder((64,))
    b.dense(64, 64)
    b.square((64,))
    b.dense(64, 64)
    b.arrays[f"{b.last}.weight"] = block_diagonal(8, 8, 8, b.rng) * 0.3
    b.square((64,))
    b.dense(64, 10)
    return b


# Grouped layers


@pytest.mark.parametrize(("groups", "members"), [(2, 8), (4, 4), (8, 2)])
def test_interleaving_halves_the_diagonals_of_a_grouped_convolution(groups: int, members: int) -> None:
    map_ = conv_map(16, 16, 3, groups)
    plain = contiguous((16, 8, 8), SLOTS)
    woven = interleaved(plain, groups)
    assert woven is not None and channel_groups(map_, plain.shape, plain.shape) == groups
    before, after = diagonal_set(map_, plain, plain), diagonal_set(map_, woven, woven)
    assert before.products == 9 * (2 * members - 1)  # nine taps by channel distances -(m - 1) .. m - 1
    assert after.products == 9 * members  # cyclic distances 0, g, .. (m - 1) g
    assert before.rotations <= 8 + 2 * members - 2 and after.rotations <= 8 + members - 1
    assert after.rotations < before.rotations


def test_interleaved_members_stand_a_number_of_groups_apart() -> None:
    woven = interleaved(contiguous((12, 2, 2), 64), 3)
    assert woven is not None
    channel = woven.positions.reshape(12, 4)[:, 0] // 4
    assert channel.tolist() == [j * 3 + i for i in range(3) for j in range(4)]
    multiplexed = interleaved(image((16, 4, 4), 256, (8, 8), 2, 64), 2)
    assert multiplexed is not None and sorted(multiplexed.positions) == list(range(256))


def test_digits_that_do_not_divide_are_no_candidate() -> None:
    assert interleaved(image((12, 4, 4), 256, (8, 8), 2, 64), 3) is None


@pytest.mark.parametrize(("channels", "outputs", "groups"), [(16, 16, 1), (16, 16, 16), (12, 24, 6), (6, 4, 2)])
def test_groups_are_seen_in_the_matrix(channels: int, outputs: int, groups: int) -> None:
    map_ = conv_map(channels, outputs, 3, groups, size=3)
    assert channel_groups(map_, (channels, 3, 3), (outputs, 3, 3)) == groups


def test_one_weight_between_groups_merges_them() -> None:
    weight = block_diagonal(4, 2, 3, np.random.default_rng(0))
    assert channel_groups(LinearMap(sp.csr_array(weight), np.zeros(8)), (12,), (8,)) == 4
    weight[7, 0] = 1.0
    assert channel_groups(LinearMap(sp.csr_array(weight), np.zeros(8)), (12,), (8,)) == 1
    weight[7, 0], weight[0, 5] = 0.0, 1.0
    assert channel_groups(LinearMap(sp.csr_array(weight), np.zeros(8)), (12,), (8,)) == 2


def is_woven(layout: object) -> bool:
    return isinstance(layout, Layout) and "interleaved" in layout.describe()


def test_the_planner_interleaves_all_tensors_between_grouped_convolutions() -> None:
    model = grouped_convolutions(2).calibrated()
    found = packed(model)
    middle = [n.name for n in model.nodes if n.op == "conv2d"]
    assert all(is_woven(found.layouts[name]) for name in middle)
    assert [found.packed[name].diagonals.products for name in middle[1:]] == [9 * 4, 9 * 4]


def test_the_planner_interleaves_a_block_diagonal_dense_layer() -> None:
    model = block_dense().calibrated()
    found = packed(model)
    name = model.nodes[2].name
    assert is_woven(found.layouts[name]) and found.packed[name].diagonals.products == 8  # 15 in contiguous order


def test_depthwise_and_ordinary_convolutions_stay_as_they_are() -> None:
    b = Builder((1, 8, 8))
    shape = b.conv((1, 8, 8), 8, 3, 1, 1)
    b.square(shape)
    shape = b.conv(shape, 8, 3, 1, 1, groups=8)
    b.square(shape)
    b.add("reshape", (512,))
    b.dense(512, 10)
    assert not any(is_woven(layout) for layout in packed(b.calibrated()).layouts.values())


@pytest.mark.parametrize("network", [grouped_convolutions, block_dense])
def test_interleaved_layouts_compute_the_graph_also_encrypted(network: object) -> None:
    builder = network()  # type: ignore[operator]
    model = builder.calibrated()
    plan = compile(model, max_error=0.05 * max(map(abs, model.ranges[model.output.node])))
    assert any("interleaved" in layer.layout for layer in plan.layers)
    assert_equals_graph(builder, model, plan)
    assert encrypted_error(builder, plan).max() <= plan.error_bound


# Convolution grids and splits


@pytest.mark.parametrize(("kernel", "channels"), [(1, 16), (3, 16), (3, 8), (5, 4)])
def test_a_convolution_occupies_taps_by_channel_offsets(kernel: int, channels: int) -> None:
    width, half = 8, kernel // 2
    layout = contiguous((channels, width, width), SLOTS)
    found = diagonal_set(conv_map(channels, channels, kernel, 1), layout, layout)
    taps = [dy * width + dx for dy in range(-half, half + 1) for dx in range(-half, half + 1)]
    grid = {(c * width * width + tap) % layout.period for c in range(channels) for tap in taps}
    assert len(grid) == kernel**2 * channels and set(found.cells[:, 2].tolist()) == grid
    assert found.rotations <= (kernel**2 - 1) + (channels - 1)


def of_outputs(diagonals: list[int], outputs: int, modulus: int) -> DiagonalSet:
    """The same diagonals from one input to each of several outputs."""
    cells = np.array([(i, 0, d) for i in range(outputs) for d in diagonals], dtype=np.int64)
    nothing = np.zeros(0, dtype=np.int64)
    return DiagonalSet(cells, modulus, modulus, modulus, nothing, nothing, nothing)


@pytest.mark.parametrize("diagonals", [[0, 1, 2, 5, 7], [3, 10, 17, 24], list(range(9))])
def test_the_split_without_giants_is_found_where_outputs_share_the_babies(diagonals: list[int]) -> None:
    """Giants are paid per output, babies once: with many outputs every giant costs more than all babies together."""
    outputs = len(diagonals)
    found = of_outputs(diagonals, outputs, 64)
    split = found.split
    assert not split.giant.any() and (split.baby == found.cells[:, 2]).all()
    assert split.rotations == sum(1 for d in diagonals if d)
    one = of_outputs(diagonals, 1, 64).split
    assert one.rotations <= split.rotations


def test_giants_come_back_where_one_output_makes_them_cheap() -> None:
    column = np.zeros(9, dtype=np.int64)
    split = best_split(np.arange(9), column, column, 64)
    assert split.giant.any() and split.rotations == 4  # three by three
