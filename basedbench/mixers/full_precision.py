"""Linear layers that stay in full precision."""

from torch import nn


class FullPrecisionLinear(nn.Linear):
    """A layer whose products are float32 also where training multiplies in half precision.

    The trainer puts half-precision copies of weights in the place of plain linear layers' alone.
    """
