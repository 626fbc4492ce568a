"""bfloat16 by Triton's interpreter, which keeps its bits as integers, multiplies those, and cuts off what it rounds.

While `repaired()` is open, dots take what the bits stand for, and float32 becomes the nearest bfloat16, as on a GPU.
"""

# mypy: allow-untyped-defs

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter


def _values(handle) -> np.ndarray:
    if handle.dtype.scalar != tl.bfloat16:
        return handle.data
    return (handle.data.astype(np.uint32) << 16).view(np.float32)


def _dot(self, x, y, accumulator, input_precision, max_num_imprecise_acc):
    product = np.matmul(_values(x), _values(y), dtype=accumulator.data.dtype)
    return interpreter.TensorHandle(product + accumulator.data, accumulator.dtype.scalar)


@contextlib.contextmanager
def repaired() -> Iterator[None]:
    dot, convert = interpreter.InterpreterBuilder.create_dot, interpreter._convert_float

    def rounded(x, given, wanted, rounding_mode):
        if (given, wanted) != (tl.float32, tl.bfloat16):
            return convert(x, given, wanted, rounding_mode)
        numbers = torch.from_numpy(np.ascontiguousarray(x).view(np.float32)).to(torch.bfloat16)
        return numbers.view(torch.int16).numpy().view(np.uint16).reshape(x.shape)

    interpreter.InterpreterBuilder.create_dot, interpreter._convert_float = _dot, rounded
    try:
        yield
    finally:
        interpreter.InterpreterBuilder.create_dot, interpreter._convert_float = dot, convert
