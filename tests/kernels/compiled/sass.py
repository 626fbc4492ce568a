"""What the assembler made of a kernel: uniform registers that are read before anything wrote them, and spills.

ptxas 12.8, which comes with Triton 3.6 and 3.7, makes wrong code of some kernels with warpgroup products: the
descriptor of a product's operand is computed from a uniform register that nothing has written. The result is an illegal
access or silently wrong numbers, which change from run to run. In the text of the machine code it can be seen.
"""

import re
from dataclasses import dataclass

_FUNCTION = re.compile(r"^\s*Function : (\S+)")
_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;")
_PREDICATE = re.compile(r"^@!?U?P\w+\s+")
_UNIFORM = re.compile(r"(g?desc\[)?\bUR(\d+)\b")
# Opcodes whose first register operand is a uniform register that they write: the uniform path, and the ways into it.
_WRITERS = ("U", "R2UR", "S2UR", "REDUX", "CREDUX", "VOTEU")
# Uniform opcodes that write predicates, memory or the state of the machine instead.
_NO_WRITERS = ("UISETP", "UPLOP3", "UTMA", "UBLK", "USETMAXREG", "UCGABAR", "UR2UP", "UFSETP")
_STACK = re.compile(r"STACK:(\d+)")


@dataclass(frozen=True)
class Suspicion:
    """A read of a uniform register that nothing before it has written."""

    function: str
    address: str
    register: int
    instruction: str

    def __str__(self) -> str:
        return f"{self.function} at {self.address}: UR{self.register} is read before it is written: {self.instruction}"


def unwritten_reads(sass: str) -> list[Suspicion]:
    """Walk the code of each function in the order of addresses; a loop's registers are written before the loop."""
    found: list[Suspicion] = []
    function, written = "", set[int]()
    for line in sass.splitlines():
        begin = _FUNCTION.match(line)
        if begin:
            function, written = begin[1], set()
        match = _INSTRUCTION.match(line)
        if match:
            reads, writes = registers(match[2])
            found += [Suspicion(function, match[1], one, match[2]) for one in sorted(reads - written)]
            written |= reads | writes  # a register is reported once
    return found


def registers(instruction: str) -> tuple[set[int], set[int]]:
    """The uniform registers that an instruction reads, and those that it writes."""
    text = _PREDICATE.sub("", instruction)
    opcode, _, rest = text.partition(" ")
    operands = [operand.strip() for operand in rest.split(",")]
    target = _target(opcode, operands)
    reads: set[int] = set()
    for index, operand in enumerate(operands):
        if index != target:
            reads |= _read(operand, matrix_in_registers=bool(re.match(r"R\d+", operands[min(1, len(operands) - 1)])))
    if target is None:
        return reads, set()
    first = int(operands[target][2:])
    return reads, set(range(first, first + _width(opcode)))


def stack_bytes(usage: str) -> int:
    """The largest stack of a function in `cuobjdump -res-usage`: what does not fit into registers lies there."""
    return max((int(size) for size in _STACK.findall(usage)), default=0)


def register_count(usage: str) -> int:
    """The most that a function in `cuobjdump -res-usage` takes."""
    return max(int(count) for count in re.findall(r"REG:(\d+)", usage))


def waits_a_product(sass: str) -> float:
    """How often warpgroup products are waited for: once each where ptxas, short of registers, puts them in series."""
    return sass.count("WARPGROUP.DEPBAR") / max(1, sass.count(" HGMMA."))


def _target(opcode: str, operands: list[str]) -> int | None:
    """The operand that is written, if that is a uniform register: the first one that is no predicate."""
    if not opcode.startswith(_WRITERS) or opcode.startswith(_NO_WRITERS):
        return None
    for index, operand in enumerate(operands):
        if not re.fullmatch(r"!?U?P[T\d]", operand):
            return index if re.fullmatch(r"UR\d+", operand) else None
    return None


def _read(operand: str, *, matrix_in_registers: bool) -> set[int]:
    """A descriptor is two registers, a product's pair of descriptors four; with a matrix in registers the last two."""
    reads: set[int] = set()
    for kind, number in _UNIFORM.findall(operand):
        first = int(number)
        if kind == "gdesc[":
            reads |= set(range(first + 2 if matrix_in_registers else first, first + 4))
        else:
            reads |= set(range(first, first + (2 if kind == "desc[" else 1)))
    return reads


def _width(opcode: str) -> int:
    if ".128" in opcode:
        return 4
    return 2 if ".64" in opcode or "WIDE" in opcode else 1
