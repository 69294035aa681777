"""What compiled code does, read from its text: PTX and SASS (NVIDIA), LLVM IR and GCN assembly (AMD)."""

from __future__ import annotations

import functools
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import triton

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"  # the wheel brings cuobjdump and nvdisasm

INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)
# "HFMA2 R4, -RZ, RZ, 0, 0" loads a constant: it multiplies the zero register
FUSED_SASS = re.compile(
    r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+\s+)?(?:[FDH]FMA2?[A-Z0-9_.]*) (?!\S+ -RZ, RZ,)", re.MULTILINE
)
USAGE = re.compile(r"Function ([\w$.]+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
FUSED_PTX = re.compile(r"^\s*(?:@!?%p\d+\s+)?fma\.", re.MULTILINE)
DIVIDES_PTX = re.compile(
    r"^\s*(?:@!?%p\d+\s+)?(?:div\.\w+\.f|div\.full\.f|div\.approx|rcp\.|sqrt\.|rsqrt\.)", re.MULTILINE
)
FUSED_LLVM = re.compile(r"call [^\n]*@llvm\.(?:fma|fmuladd)\.")
DIVIDES_LLVM = re.compile(
    r"\bfdiv\b|@llvm\.(?:sqrt|amdgcn\.rsq|amdgcn\.rcp)|@__ocml_(?:sqrt|rsqrt|div)|\b[us](?:div|rem) i64 %\S+ %"
)


@dataclass(frozen=True)
class Code:
    """What one kernel's instructions amount to."""

    wide_loads: int  # of 128 bits from global memory
    wide_stores: int
    local: int  # bytes of the accesses to local memory in the code: spills, and arrays that are indexed
    fused: int  # fused multiply-adds; those of a division or a root included


@dataclass(frozen=True)
class Usage:
    registers: int
    stack: int
    shared: int
    spills: int = 0


def _bytes_of(instruction: str) -> int:
    """ "LDG.E.128.CONSTANT": 16."""
    for part in instruction.split("."):
        if part in ("8", "U8", "S8", "16", "U16", "S16", "64", "128", "256"):
            return int(part.lstrip("US")) // 8
    return 4


def sass(text: str) -> Code:
    """From a kernel's part of what nvdisasm or cuobjdump -sass print."""
    found = INSTRUCTION.findall(text)
    return Code(
        wide_loads=sum(i.startswith("LDG.") and _bytes_of(i) == 16 for i in found),
        wide_stores=sum(i.startswith("STG.") and _bytes_of(i) == 16 for i in found),
        local=sum(_bytes_of(i) for i in found if i.startswith(("LDL", "STL"))),
        fused=len(FUSED_SASS.findall(text)),
    )


def gcn(text: str) -> Code:
    """From the assembly of an AMD kernel."""
    found = re.findall(r"^\s+([a-z]\w+)\s", text, re.MULTILINE)
    return Code(
        wide_loads=sum(i in ("global_load_dwordx4", "buffer_load_dwordx4", "flat_load_dwordx4") for i in found),
        wide_stores=sum(i in ("global_store_dwordx4", "buffer_store_dwordx4", "flat_store_dwordx4") for i in found),
        local=4 * sum(i.startswith("scratch_") for i in found),
        fused=sum(
            re.match(r"v_(?:pk_)?(?:fma|fmac|mad|mac|fmaak|fmamk)_(?:legacy_)?f(?:16|32|64)", i) is not None
            for i in found
        ),
    )


def usages(text: str) -> dict[str, Usage]:
    """Kernel by kernel, from what cuobjdump --dump-resource-usage prints."""
    return {
        name: Usage(int(r), int(stack) + int(local), int(shared))
        for name, r, stack, shared, local in USAGE.findall(text)
    }


def amd_usage(text: str) -> Usage:
    """From the notes at the end of an AMD kernel's assembly; the spills are registers, 4 bytes of each thread."""

    def note(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", text)
        if found is None:
            raise ValueError(f"no .{name} in the assembly")
        return int(found[1])

    registers = note("vgpr_count") + note("agpr_count")
    # scalar registers spill into vector registers, which count; vector registers into memory
    spills = 4 * note("vgpr_spill_count")
    return Usage(registers, note("private_segment_fixed_size"), note("group_segment_fixed_size"), spills)


PTXAS = re.compile(
    r"Compiling entry function '([\w$]+)'.*?"
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\s+"
    r"ptxas info\s+: Used (\d+) registers([^\n]*)",
    re.DOTALL,
)


def ptxas_usages(text: str) -> dict[str, Usage]:
    """Kernel by kernel, from what ptxas -v prints."""
    found = {}
    for name, stack, stores, loads, registers, rest in PTXAS.findall(text):
        shared = re.search(r"(\d+) bytes smem", rest)
        found[name] = Usage(int(registers), int(stack), int(shared[1]) if shared else 0, int(stores) + int(loads))
    return found


def by_kernel(text: str) -> dict[str, str]:
    """The text of nvdisasm cut into its kernels' code."""
    parts = re.split(r"^\s*//-+\s+(\S+)\s+-+\s*$", text, flags=re.MULTILINE)
    return {name[6:]: body for name, body in zip(parts[1::2], parts[2::2], strict=True) if name.startswith(".text.")}


def ptx_by_kernel(text: str) -> dict[str, str]:
    """A PTX file cut into its kernels."""
    parts = re.split(r"\.entry\s+([\w$]+)\(", text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def fused_by_rule(fused_source: int, divides: bool, code: Code) -> tuple[int, int]:
    """(fused multiply-adds that a compiler made, those that a division or root consists of).

    What the compiler was asked for (PTX, LLVM IR) shows the first; the second appear only when it is assembled. So
    without a division or root in the source, every one in the machine code is of the first kind.
    """
    return (fused_source, max(code.fused - fused_source, 0)) if divides else (max(fused_source, code.fused), 0)


def tool(name: str, *arguments: str) -> str:
    return subprocess.run([str(TOOLS / name), *arguments], check=True, capture_output=True, text=True).stdout


@functools.cache
def tool_version(command: str) -> str:
    said = subprocess.run([command, "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"V(\d+\.\d+\.\d+)", said)
    return found[1] if found else "unknown"
