"""Machine code of compiled kernels as text, and a JSON line for each of what a test wants to know of it.

The disassembler takes half a second to begin, longer than for most kernels: so it gets many at once, as one piece of
code without a file's structure around it. Then addresses and the targets of branches count on from kernel to kernel.
"""

import json
import re
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import triton

from tests.kernels.compiled.sass import stack_bytes, unwritten_reads

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
AT_ONCE = 64  # kernels: a hundred megabytes of text or so
INSTRUCTION = 16  # bytes
_LINE = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/.*;.*$", re.MULTILINE)


def tell(
    found: Iterable[tuple[dict[str, Any], Any]],
    examined: Callable[[Any, str], dict[str, Any]],
    *,
    code: Callable[[Any], bool] = lambda kernel: True,
) -> None:
    """Print a line for each kernel: what is known of it, and what `examined` finds in it and its text."""
    found = list(found)
    texts = disassembled((kernel for _, kernel in found), code=code)
    for known, kernel in found:
        print(json.dumps(known | examined(kernel, texts[kernel.hash])), flush=True)


def disassembled(kernels: Iterable[Any], *, code: Callable[[Any], bool] = lambda kernel: True) -> dict[str, str]:
    """By hash what resources a kernel takes, and the instructions of its functions where `code` says so."""
    different = {kernel.hash: kernel for kernel in kernels}
    texts = {key: resources(kernel.asm["cubin"]) for key, kernel in different.items()}
    read = [kernel for kernel in different.values() if code(kernel)]
    for begin in range(0, len(read), AT_ONCE):
        some = read[begin : begin + AT_ONCE]
        for kernel, text in zip(some, _instructions([kernel.asm["cubin"] for kernel in some]), strict=True):
            texts[kernel.hash] += text
    return texts


def resources(cubin: bytes) -> str:
    """As cuobjdump prints them."""
    with with_file(cubin) as path:
        return run("cuobjdump", "-res-usage", path)


def _instructions(cubins: list[bytes]) -> Iterator[str]:
    """A function's name in a line, as cuobjdump has it, then its instructions, a line each."""
    functions = [_functions(cubin) for cubin in cubins]
    with with_file(b"".join(code for each in functions for _, code in each)) as path:
        lines = _LINE.findall(run("nvdisasm", "--binary", "SM90a", "-novliw", path))
    at = 0
    for each in functions:
        text = []
        for name, code in each:
            count = len(code) // INSTRUCTION
            text += [f"\t\tFunction : {name}", *lines[at : at + count]]
            at += count
        yield "\n".join(text)
    assert at == len(lines), f"{at} instructions by the size of the code, {len(lines)} by the disassembler"


def _functions(cubin: bytes) -> list[tuple[str, bytes]]:
    """Names and code: the sections `.text.NAME` of an ELF file of 64 bits."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<I20xQQ", cubin, table + index * size) for index in range(count)]
    found = []
    for name_at, at, length in sections:
        begin = sections[names][1] + name_at
        name = cubin[begin : cubin.index(b"\0", begin)].decode()
        if name.startswith(".text."):
            found.append((name.removeprefix(".text."), cubin[at : at + length]))
    return found


@contextmanager
def with_file(content: bytes) -> Iterator[str]:
    """The name of a file with this content, as long as it lasts."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(content)
        file.flush()
        yield file.name


def run(tool: str, *arguments: str) -> str:
    """What a tool prints."""
    return subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout


def facts(kernel: Any, text: str) -> dict[str, Any]:
    """What is asked of every kernel: its stack and shared memory, and instructions that read what nobody wrote."""
    suspicions = [str(one) for one in unwritten_reads(text)]
    return {"stack": stack_bytes(text), "suspicions": suspicions, "shared": kernel.metadata.shared}
