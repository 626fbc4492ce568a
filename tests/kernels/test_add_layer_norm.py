"""The reference of `add_layer_norm` against the formula written out, and its counts."""

from importlib import import_module

import pytest
import torch

from basedbench.kernels import add_layer_norm

module = import_module("basedbench.kernels.add_layer_norm")


def formula(h, residual, weight, bias, kept=None, keep=1.0, center=True):
    r = h if kept is None else torch.where(kept, h / keep, 0.0)
    r = r if residual is None else r + residual
    x = r - r.mean(-1, keepdim=True) if center else r
    y = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    return (y if bias is None else y + bias), r


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("dropout", [True, False])
def test_formula_and_gradients(randn, gradients, residual, center, dropout):
    h, stream, weight, bias = randn(3, 5, 12), randn(3, 5, 12), randn(12), randn(12)
    kept = randn(3, 5, 12) < 0.5 if dropout else None
    keep = 0.75 if dropout else 1.0
    bias = bias if center else None

    def given(function, **names):
        def run(h, weight, *rest):
            rest = list(rest)
            stream_ = rest.pop(0) if residual else None
            return function(h, stream_, weight, rest.pop(0) if center else None, keep=keep, center=center, **names)

        return run

    arguments = [h, weight, *([stream] if residual else []), *([bias] if center else [])]
    ours, expected = given(add_layer_norm, kept_xD=kept), given(formula, kept=kept)
    torch.testing.assert_close(ours(*arguments), expected(*arguments))
    torch.testing.assert_close(gradients(ours, *arguments), gradients(expected, *arguments))


def test_the_sum_is_h_itself_where_nothing_is_added(randn):
    h = randn(4, 8)
    assert add_layer_norm(h, None, randn(8), randn(8))[1] is h


def test_dtypes_follow_the_stream_and_the_parameters(randn):
    """A half-precision mixer on a float32 stream, and a half-precision model throughout."""
    h, stream, weight, bias = randn(4, 8).bfloat16(), randn(4, 8).float(), randn(8).float(), randn(8).float()
    assert [x.dtype for x in add_layer_norm(h, stream, weight, bias)] == [torch.float32] * 2
    assert [x.dtype for x in add_layer_norm(h, None, weight, bias)] == [torch.float32, torch.bfloat16]
    half = add_layer_norm(h, stream.bfloat16(), weight.bfloat16(), bias.bfloat16())
    assert [x.dtype for x in half] == [torch.bfloat16] * 2


def test_a_bias_without_centering_is_refused(randn):
    with pytest.raises(ValueError, match="without centering has no bias"):
        add_layer_norm(randn(2, 8), None, randn(8), randn(8), center=False)


def test_counts():
    assert module.bytes_moved(rows=1000, width=64) == 4 * (4 * 1000 * 64 + 2 * 64)
    assert module.bytes_moved(rows=1000, width=64, backward=True) == 4 * (8 * 1000 * 64 + 5 * 64)
    assert module.flops(rows=1000, width=64, backward=True) == 3 * module.flops(rows=1000, width=64) == 3 * 512_000
