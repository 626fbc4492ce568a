"""The reference of row_linear, and how its kernel cuts a product."""

import importlib

import pytest
import torch
import torch.nn.functional as F

from basedbench.kernels import dependent_launches, row_linear

module = importlib.import_module("basedbench.kernels.row_linear")
PROCESSORS = 132


def test_products_and_gates(randn):
    x, weight, bias = randn(3, 12), randn(10, 12), randn(10)
    with dependent_launches():
        torch.testing.assert_close(row_linear(x, weight, bias, parts=True), x @ weight.T + bias)
        value, gate = x @ weight[:5].T, x @ weight[5:].T
        torch.testing.assert_close(row_linear(x, weight, gated=True), value * F.silu(gate))


@pytest.mark.parametrize("rows", [1, 16, 17, 128])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize(
    ("outputs", "width"), [(7168, 1792), (1792, 3584), (2688, 1792), (4096, 1024), (1024, 2048), (8192, 2048)]
)
def test_plans_fill_the_device_once(rows, outputs, width, gated, parts):
    found = module.plan(rows, outputs, width, gated, parts, PROCESSORS)
    if found is None:  # too few programs with as few parts as allowed
        most = module.MOST_PARTS if parts else module.MOST_JOINED
        assert -(-outputs // 64) * min(most, PROCESSORS // -(-outputs // 64)) < module.BUSY * PROCESSORS
        return
    programs = -(-outputs // found.tile) * found.split
    steps = width // module.WIDTH
    assert 0.6 * PROCESSORS < programs <= PROCESSORS
    assert found.split * -(-steps // found.split) - steps < -(-steps // found.split)  # no part is empty
    ring = found.stages * (found.tile + max(16, rows)) * 2 * module.WIDTH
    assert found.stages >= 2
    assert ring <= module.SHARED_BYTES


@pytest.mark.parametrize("shape", [(129, 7168, 1792), (1, 7168, 1800), (1, 50264, 1792), (1, 64, 64)])
def test_other_products_are_pytorchs(shape):
    assert module.plan(*shape, False, False, PROCESSORS) is None


def test_a_choice_replaces_the_plan(monkeypatch):
    chosen = module.Plan(64, 1, 4)
    monkeypatch.setattr(module, "CHOSEN", {(7168, 1792, True, False): chosen, (7168, 1792, False, False): None})
    assert module.plan(128, 7168, 1792, True, False, PROCESSORS) == chosen
    assert module.plan(128, 7168, 1792, False, False, PROCESSORS) is None


@pytest.mark.parametrize("gated", [False, True])
def test_costs(gated):
    shape = {"rows": 3, "width": 8, "outputs": 10, "gated": gated}
    written = 15 if gated else 30
    assert module.flops(**shape) == 2 * 3 * 8 * 10 + 3 * 15 * gated
    assert module.bytes_moved(**shape) == 2 * (3 * 8 + 80 + written)


def test_the_context_ends_with_its_block():
    from basedbench.kernels.dependent_launch import _dependent

    with dependent_launches():
        assert _dependent.get()
    assert not _dependent.get()
