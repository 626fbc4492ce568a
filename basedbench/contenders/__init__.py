"""What throughput compares: one file per peer, found by name, and the user's own through `contender`."""

from basedbench.contenders.base import Call, Contender, Tensors
from basedbench.contenders.fla import Chunk, FusedChunkBased, ParallelBased
from basedbench.contenders.flex import Flex
from basedbench.contenders.library import Compiled, Library
from basedbench.contenders.mamba import MambaSsm
from basedbench.contenders.operators import Operator, operator_of
from basedbench.contenders.ours import Ours, Reference
from basedbench.contenders.registry import all_contenders, contender, get_contender, register
from basedbench.contenders.sdpa import BACKENDS

for _one in (
    Ours(),
    Reference(),
    *BACKENDS,
    Flex(),
    Library(),
    Compiled(),
    FusedChunkBased(),
    ParallelBased(),
    Chunk(),
    MambaSsm(),
):
    register(_one)

__all__ = [
    "Call",
    "Contender",
    "Operator",
    "Tensors",
    "all_contenders",
    "contender",
    "get_contender",
    "operator_of",
    "register",
]
