"""The CUDA kernels, compiled by nvcc for every target: their rows of the table."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tools.budgets import code
from tools.budgets.budget import Budget

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "csrc/cuda"
CACHE = ROOT / "build/budgets"
TARGETS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
SHORT = {
    "float": "fp32",
    "double": "fp64",
    "fastsal::bfloat16": "bf16",
    "fastsal::float16": "fp16",
    "fastsal::AnyGradient": "any",
}
BYTES = {"float": 4, "double": 8, "fastsal::bfloat16": 2, "fastsal::float16": 2, "fastsal::AnyGradient": 8}
ON_CHIP = ("l2_step", "l1_step", "truncated_cross_entropy", "kl_divergence")


class Kernel(NamedTuple):
    """A kernel by its demangled name, and what its template arguments say."""

    name: str
    call: str
    aligned: bool  # whether it has a path of 128-bit accesses
    loads: int  # of 128 bits, if every row operand moves 16 bytes at a time
    stores: int


def missing() -> str:
    """Why there is nothing to measure; empty where there is."""
    if shutil.which("nvcc") is None:
        return "nvcc is not on the PATH"
    return "" if code.TOOLS.exists() else "no nvdisasm: triton is not installed"


def version() -> str:
    return f"nvcc {code.tool_version('nvcc')}"


def flags() -> list[str]:
    """Those of the build for device code, as setup.py has them."""
    found = re.search(r"nvcc = \[(.*?), \*flags", (ROOT / "setup.py").read_text())
    if found is None or "-fmad=false" not in found[1]:
        raise RuntimeError("setup.py: no flags of nvcc, or none that forbids fused multiply-adds")
    return [flag.strip().strip('"') for flag in found[1].split(",")]


def described(demangled: str) -> Kernel:
    """What a kernel is asked for, by its name: "void fastsal::linf_step_kernel<float, fastsal::float16, 4>(...)"."""
    found = re.match(r"(?:void )?fastsal::(\w+)_kernel(?:<(.*)>)?\(", demangled)
    if found is None:
        raise ValueError(f"not a kernel: {demangled}")
    name = found[1]
    arguments = [a.strip().removeprefix("(int)").removeprefix("(bool)") for a in (found[2] or "").split(",") if a]
    if name == "retire":
        wide = arguments == ["uint4"]
        return Kernel(name, f"units of {arguments[0]}", wide, 4 * wide, 4 * wide)
    if name == "start_sum":
        return Kernel(name, "fp64 sums", False, 0, 0)
    if name in ("scaled_start", "start_scale"):
        each = BYTES[arguments[0]] * 4 // 16
        return Kernel(name, SHORT[arguments[0]], True, each, each)
    if name == "linf_start":
        each = BYTES[arguments[0]] * int(arguments[1]) // 16
        order = "in memory order" if arguments[2] in ("true", "1") else "any order"
        return Kernel(
            name, f"{SHORT[arguments[0]]}, {arguments[1]} at a time, {order}", arguments[1] == "4", each, each
        )
    if name in ("linf_step", "l2_step", "l1_step", "l2_slope", "l2_length", "l2_project", "l1_long_step"):
        x, grad, *number = arguments
        group = int(number[0]) if name == "linf_step" else 16 // BYTES[x]
        loads = BYTES[grad] * group // 16 + (0 if name == "l2_slope" else 2)
        turns = int(number[0]) if name in ("l2_step", "l1_step") else 1
        writes = name not in ("l2_slope", "l2_length")
        what = {"linf_step": f", {group} at a time"}.get(name, f", {turns} turns" if number else "")
        return Kernel(name, f"{SHORT[x]}, grad {SHORT[grad]}{what}", group > 1, loads * turns, int(writes))
    logits, *rest = arguments
    team = [a.removeprefix("fastsal::") for a in rest if "Team" in a]
    wide = rest[-1] in ("true", "1")
    words = [SHORT[logits], *({"WarpTeam": "warp", "BlockTeam": "block"}[t] + " per row" for t in team)]
    if name == "margin_loss":
        words.append("DLR" if rest[1] == "4" else "CW")
    rows = 2 if name.startswith("kl") else 1
    passes = 2 if name.endswith("_long") else 1
    return Kernel(name, ", ".join([*words, "128 bits" if wide else "any row"]), wide, rows * passes, rows)


def kind_of(name: str) -> str:
    return "row on chip" if name in ON_CHIP else "streaming"


def _nvcc(target: str, *arguments: str) -> str:
    """What the compiler says."""
    command = ["nvcc", *flags(), f"-arch={target}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    return done.stderr


def _measure(ptx: Path, target: str) -> list[dict[str, Any]]:
    """What each kernel of a source in PTX is assembled to: numbers, by its mangled name."""
    cubin = ptx.with_suffix(".cubin")
    usages = code.ptxas_usages(_nvcc(target, "-cubin", "-Xptxas", "-v", "-o", str(cubin), str(ptx)))
    machine = code.by_kernel(code.tool("nvdisasm", "-c", str(cubin)))
    source_code = code.ptx_by_kernel(ptx.read_text())
    if set(usages) != set(machine) or set(usages) != set(source_code):
        raise RuntimeError(f"{ptx.name} for {target}: ptxas, nvdisasm and the PTX name different kernels")
    found = []
    for mangled, usage in usages.items():
        seen, text = code.sass(machine[mangled]), source_code[mangled]
        made, divided = code.fused_by_rule(len(code.FUSED_PTX.findall(text)), bool(code.DIVIDES_PTX.search(text)), seen)
        threads = re.search(r"\.maxntid\s+(\d+)", text)
        if threads is None:
            raise RuntimeError(f"{mangled}: no __launch_bounds__")
        found.append(
            {
                "mangled": mangled,
                "threads": int(threads[1]),
                "registers": usage.registers,
                "spills": usage.spills,
                "stack": usage.stack,
                "shared": usage.shared,
                "wide_loads": seen.wide_loads,
                "wide_stores": seen.wide_stores,
                "fused": made,
                "fused_in_division": divided,
            }
        )
    return found


def measured(source: Path, target: str) -> list[dict[str, Any]]:
    """The same, assembled (most of the time) only where the same PTX was not."""
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder) / f"{source.stem}.ptx"
        _nvcc(target, "-ptx", "-o", str(ptx), str(source))
        content = hashlib.sha256(f"{version()} {flags()} {target}".encode())
        for path in (ptx, Path(code.__file__)):
            content.update(path.read_bytes())
        kept = CACHE / f"{source.stem}-{target}-{content.hexdigest()[:16]}.json"
        if kept.exists():
            return json.loads(kept.read_text())  # type: ignore[no-any-return]
        found = _measure(ptx, target)
    CACHE.mkdir(parents=True, exist_ok=True)
    partial = kept.with_suffix(".partial")
    partial.write_text(json.dumps(found))
    partial.replace(kept)
    return found


def budgets(jobs: int) -> list[Budget]:
    """One row per kernel and target, `jobs` compilations at a time."""
    tasks = [(source, target) for source in sorted(SOURCES.glob("*.cu")) for target in TARGETS]
    longest_first = sorted(tasks, key=lambda task: task[0].stem != "pgd_step_l1")
    with ThreadPoolExecutor(jobs) as pool:
        results = dict(zip(longest_first, pool.map(lambda task: measured(*task), longest_first), strict=True))
    found = []
    for source, target in tasks:
        numbers = results[source, target]
        mangled = "\n".join(n["mangled"] for n in numbers)
        names = subprocess.run(["c++filt"], input=mangled, capture_output=True, text=True, check=True).stdout.split(
            "\n"
        )
        for number, name in zip(numbers, names, strict=False):
            kernel = described(name)
            rest = {key: value for key, value in number.items() if key != "mangled"}
            found.append(
                Budget(
                    backend="cuda",
                    kernel=kernel.name,
                    call=kernel.call,
                    aligned=kernel.aligned,
                    target=target,
                    kind=kind_of(kernel.name),
                    loads_due=kernel.loads,
                    stores_due=kernel.stores,
                    **rest,
                )
            )
    return found
