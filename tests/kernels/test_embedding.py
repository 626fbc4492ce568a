"""The reference of `embedding` against a one-hot product, and its counts."""

from importlib import import_module

import torch
import torch.nn.functional as F

from basedbench.kernels import embedding

module = import_module("basedbench.kernels.embedding")


def test_one_hot_product_and_gradient(randn, gradients):
    tokens, weight = torch.tensor([[3, 0, 3], [1, 3, 6]]), randn(7, 5)

    def formula(weight):
        return F.one_hot(tokens, 7).double() @ weight

    torch.testing.assert_close(embedding(tokens, weight), formula(weight))
    ours, expected = gradients(lambda w: embedding(tokens, w), weight), gradients(formula, weight)
    torch.testing.assert_close(ours, expected)


def test_counts():
    assert module.flops(tokens=100, width=64) == 0
    assert module.flops(tokens=100, width=64, backward=True) == 100 * 64
    shape = {"tokens": 100, "width": 64, "vocabulary": 8192}
    assert module.bytes_moved(**shape) == 8 * 100 + 4 * 2 * 100 * 64
    assert module.bytes_moved(**shape, backward=True) == 16 * 100 + 4 * (3 * 100 + 8192) * 64
