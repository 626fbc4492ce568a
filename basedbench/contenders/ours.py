"""basedbench's own implementations: the public functions of basedbench.kernels, and their PyTorch references."""

from basedbench import __version__
from basedbench.config.throughput import OPERATOR_AXES, Case
from basedbench.contenders.base import Call, Contender
from basedbench.contenders.operators import bind, operator_of


class Ours(Contender):
    """The public functions: Triton on a GPU where there is a kernel, the reference elsewhere."""

    name = "ours"
    operators = tuple(name for name in OPERATOR_AXES if name != "attention")

    @property
    def version(self) -> str | None:
        return __version__

    def build(self, case: Case) -> Call:
        public = operator_of(case).public
        assert public is not None  # every operator in `operators` has one
        return bind(public, case)


class Reference(Contender):
    """The PyTorch references, eager."""

    name = "reference"
    operators = tuple(OPERATOR_AXES)
    package = "torch"

    def build(self, case: Case) -> Call:
        return bind(operator_of(case).reference, case)
