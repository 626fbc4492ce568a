"""row_linear without its kernel, and which plans fit."""

import importlib

import pytest
import torch

module = importlib.import_module("basedbench.kernels.row_linear")
PLAN = module.Plan(128, 128, 2, 5, 2, True)


@pytest.mark.parametrize("plan", [None, PLAN])
def test_elsewhere_it_is_a_product(randn, plan):
    x, weight, bias = randn(3, 12), randn(10, 12), randn(10)
    torch.testing.assert_close(module.row_linear(x, weight, bias, plan=plan), x @ weight.T + bias)
    torch.testing.assert_close(module.row_linear(x, weight, early=True, plan=plan), x @ weight.T)


@pytest.mark.parametrize(("rows", "batch"), [(1, 8), (8, 8), (9, 16), (100, 128), (128, 128)])
def test_rows_of_a_warpgroup_product(rows, batch):
    assert module.batch_of(rows) == batch


def test_rings_take_what_their_tiles_take():
    assert module.shared_bytes(100, PLAN) == 5 * 128 * 128 * 2 + 2 * 128 * 128 * 2
    assert module.shared_bytes(1, PLAN) == 5 * 128 * 128 * 2 + 2 * 8 * 128 * 2


@pytest.mark.parametrize(
    ("shape", "changes", "expected"),
    [
        ((128, 7168, 1792), {}, True),
        ((129, 7168, 1792), {}, False),  # too many rows
        ((128, 7168, 1800), {}, True),  # a stage that is not full
        ((128, 8576, 1792), {}, False),  # 134 programs
        ((128, 8448, 1792), {}, True),  # 132
        ((128, 1792, 128), {}, False),  # a part would be empty
        ((8, 1792, 3584), {"split": 16}, False),  # more programs than rows to share
        ((128, 1792, 1792), {"weight_stages": 6}, False),  # 256 kB
        ((8, 1792, 1792), {"weight_stages": 6}, True),
        ((128, 1024, 1024), {"tile": 64, "split": 1, "weight_stages": 8, "groups": 4}, True),
        ((128, 1792, 1024), {"tile": 64, "split": 2, "groups": 4}, False),  # 224 programs
        ((8, 1024, 1024), {"groups": 2}, False),  # four rows each
    ],
)
def test_plans_that_fit(shape, changes, expected):
    assert module.fits(*shape, PLAN._replace(**changes), 132) == expected


@pytest.mark.parametrize("rows", [1, 3, 8, 17, 32, 64, 128])
@pytest.mark.parametrize(
    ("outputs", "width"), [(7168, 1792), (9216, 1680), (1680, 4608), (160, 4096), (4096, 128), (8512, 2048), (48, 64)]
)
def test_plans_of_dependents_fit(rows, outputs, width):
    plan = module.plan_of(rows, outputs, width, 132)
    if rows > 64 and outputs > 64 * 132:
        assert plan is None  # PyTorch's product
        return
    assert module.fits(rows, outputs, width, plan, 132)
    assert plan.meet == (rows >= 16)


def test_dependents_leave_large_products_to_pytorch():
    assert module.plan_of(32, 50264, 1792, 132) is None
    assert module.plan_of(129, 1792, 1792, 132) is None


@pytest.mark.parametrize(
    ("outputs", "width", "expected"),
    [(7168, 1792, (64, 128, 1, 10, 4)), (1792, 1792, (64, 128, 4, 4, 4)), (9216, 1680, (128, 128, 1, 6, 4))],
)
def test_plans_fill_shared_memory(outputs, width, expected):
    assert module.plan_of(32, outputs, width, 132)[:5] == expected


@pytest.mark.parametrize(
    ("rows", "outputs", "width", "split", "groups"),
    [
        (32, 1024, 1024, 1, 4),  # instead of four parts
        (8, 1024, 1024, 4, 1),  # too few rows for two groups
        (128, 1024, 1024, 1, 8),  # 128 programs, not 64
        (128, 1536, 1024, 1, 4),  # 192 would be too many
        (128, 4096, 1024, 1, 2),
        (64, 4096, 1024, 1, 1),
        (128, 1792, 1792, 4, 1),  # 458 kB of weights: no tile's fit whole
    ],
)
def test_rows_go_in_groups_where_weights_fit_whole(rows, outputs, width, split, groups):
    plan = module.plan_of(rows, outputs, width, 132)
    assert (plan.split, plan.groups) == (split, groups)
    if groups > 1:
        assert plan.weight_stages * plan.width >= width


def test_costs():
    shape = {"rows": 3, "width": 8, "outputs": 10}
    assert module.flops(**shape) == 2 * 3 * 8 * 10
    assert module.bytes_moved(**shape) == 2 * (3 * 8 + 80 + 30)
