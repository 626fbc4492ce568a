"""The reader of machine code, on small texts: what ptxas got wrong, and what only looks like it."""

import pytest

from tests.kernels.compiled.sass import registers, stack_bytes, unwritten_reads, waits_a_product


def code(*instructions: str, function: str = "kernel") -> str:
    """As cuobjdump prints it, encodings included."""
    lines = [f"\t\tFunction : {function}"]
    for index, text in enumerate(instructions):
        lines.append(f"        /*{16 * index:04x}*/                   {text} ;          /* 0x00000a00ff017b82 */")
        lines.append("                                                       /* 0x000e700000000800 */")
    return "\n".join(lines)


GOOD = [
    ["ULDC UR4, c[0x0][0x288]", "IMAD.U32 R40, RZ, RZ, UR4"],
    ["ULDC.64 UR6, c[0x0][0x268]", "LDG.E R4, desc[UR6][R2.64]"],
    ["R2UR UR4, R5", "UIADD3 UR4, UR4, 0x1, URZ", "@P0 BRA 0x10"],
    ["S2UR UR8, SR_CTAID.X", "@UP0 UMOV UR9, URZ", "UIADD3 UR10, UP0, UR8, UR9, URZ"],
    ["ULDC.64 UR4, c[0x0][0x8]", "UIADD3.64 UR6, UR4, 0x2, URZ", "HGMMA.64x64x16.F32.BF16 R56, gdesc[UR4], RZ, !UPT"],
    # With a matrix in registers a product has one descriptor, in the upper half of the four.
    ["ULDC.64 UR10, c[0x0][0x8]", "HGMMA.64x64x16.F32.BF16 R88, R140, gdesc[UR8].tnspB, R88"],
    ["UISETP.NE.AND UP0, UPT, URZ, URZ, UPT", "@!UP0 UMOV UR4, 0x1", "MOV R3, UR4"],
]
BAD = [
    (["UIADD3 UR34, UP0, UR34, 0x40, URZ"], 34),
    (["UMOV UR4, 0x1", "UIADD3.X UR9, UR5, 0x40000040, URZ, UP0, !UPT"], 5),
    (["ULDC UR6, c[0x0][0x268]", "LDG.E R4, desc[UR6][R2.64]"], 7),
    (["ULDC.64 UR4, c[0x0][0x8]", "HGMMA.64x64x16.F32.BF16 R56, gdesc[UR4], RZ, !UPT"], 6),
    (["UMOV UR10, 0x1", "HGMMA.64x64x16.F32.BF16 R88, R140, gdesc[UR8].tnspB, R88"], 11),
    (["UISETP.GE.AND UP0, UPT, UR7, 0x2, UPT"], 7),
    (["UTMALDG.2D [UR16], [UR6], desc[URZ]"], 6),
    (["IMAD.U32 R40, RZ, RZ, UR4", "UMOV UR4, 0x1"], 4),
]


@pytest.mark.parametrize("instructions", GOOD)
def test_sound_code_passes(instructions: list[str]) -> None:
    assert unwritten_reads(code(*instructions)) == []


@pytest.mark.parametrize(("instructions", "register"), BAD)
def test_a_register_that_nothing_wrote_is_found(instructions: list[str], register: int) -> None:
    found = unwritten_reads(code(*instructions))
    assert register in {one.register for one in found}
    assert f"UR{register} is read before it is written" in "".join(map(str, found))


def test_each_function_starts_with_nothing_written() -> None:
    first = code("UMOV UR4, 0x1", "MOV R3, UR4", function="first")
    second = code("MOV R3, UR4", function="second")
    assert [(one.function, one.address) for one in unwritten_reads(f"{first}\n{second}")] == [("second", "0000")]


def test_a_register_is_reported_once() -> None:
    assert len(unwritten_reads(code("MOV R3, UR4", "MOV R5, UR4"))) == 1


@pytest.mark.parametrize(
    ("instruction", "reads", "writes"),
    [
        ("ULDC.64 UR6, c[0x0][0x268]", set(), {6, 7}),
        ("UIMAD.WIDE.U32 UR4, UR8, 0x4, UR10", {8, 10}, {4, 5}),
        ("@P1 R2UR P2, UR5, R7", set(), {5}),
        ("SYNCS.EXCH.64 URZ, [UR4], UR6", {4, 6}, set()),
        ("IADD3 R2, R4, c[0x0][UR3], RZ", {3}, set()),
        ("VOTEU.ANY UR8, UPT, PT", set(), {8}),
        ("BRA 0x4820", set(), set()),
    ],
)
def test_reads_and_writes(instruction: str, reads: set[int], writes: set[int]) -> None:
    assert registers(instruction) == (reads, writes)


def test_stack() -> None:
    usage = " Function a:\n  REG:229 STACK:0 SHARED:1024\n Function b:\n  REG:255 STACK:80 SHARED:0"
    assert stack_bytes(usage) == 80
    assert stack_bytes("") == 0


def test_waits_for_products_are_counted() -> None:
    product, wait = "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24", "WARPGROUP.DEPBAR.LE gsb0, 0x0"
    assert waits_a_product(code(product, product, product, product, wait)) == 0.25
    assert waits_a_product(code(product, wait, product, wait)) == 1.0
    assert waits_a_product(code("MOV R3, R4")) == 0.0
