"""Mutated sources as shared libraries: one that holds all mutations behind a switch, or one per mutation.

A *target* is what a library is made of: an operator's CPU bodies (csrc/cpu, without torch), its CUDA kernels on the
emulator of tests/emulator, or parts of both by themselves (tests/cpu_maths.cpp, row_parts.cpp, cuda_parts.cpp).
"""

from __future__ import annotations

import ctypes
import functools
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cuda_parts
import emulated

from fastsal.operators import OPERATORS
from tools.mutants import cpp
from tools.mutants.mutation import Choice, Mutation, Site, Switched

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
MUTATED = ("csrc/rows/*.h", "csrc/cuda/*.cuh")
SWITCH = HERE / "switch.h"
# The flags on which rounding depends; variables of its own for each library, however many are loaded; a trap where an
# index leaves a local array, or a wide access its alignment.
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared"]
FLAGS += ["-fno-gnu-unique", "-U_FORTIFY_SOURCE", "-w", "-DFASTSAL_ONE_TIER"]
FLAGS += ["-fsanitize=bounds,alignment", "-fsanitize-undefined-trap-on-error"]

CPU = """#include "cpu/{name}.cpp"
#include "cpu/tiers.cpp"
#include "call.h"
extern "C" int64_t run(const Operand* operands) {{ return call(&fastsal::{name}, operands); }}
"""
MATHS = f"""#include "{ROOT}/tests/cpu_maths.cpp"
#include "{ROOT}/tests/row_parts.cpp"
extern "C" void words_of(uint64_t seed, uint64_t sample, uint64_t block, int64_t count, uint32_t* out) {{
  uint32_t chunk[4 * kBlocks];
  for (int64_t at = 0; at < count; at += kBlocks) {{
    philox(seed, sample, block + at, chunk);
    for (int64_t i = 0; i < 4 * kBlocks && 4 * at + i < 4 * count; ++i) out[4 * at + i] = chunk[i];
  }}
}}
extern "C" void block_of(uint64_t seed, uint64_t sample, uint64_t block, int64_t count, uint32_t* out) {{
  for (int64_t at = 0; at < count; ++at) philox_block(seed, sample, block + at, out + 4 * at);
}}
"""


@dataclass(frozen=True)
class Target:
    kind: str  # "cpu", "cuda", "maths" or "parts"
    name: str  # of the operator

    @property
    def entry(self) -> str:
        if self.kind == "cuda":
            return str(emulated.source(self.name))
        if self.kind == "cpu":
            return CPU.format(name=self.name)
        return cuda_parts.SOURCE if self.kind == "parts" else MATHS

    def command(self, csrc: Path, switched: bool, *flags: str) -> list[str]:
        before = [str(emulated.HEADER)] if self.kind in ("cuda", "parts") else []
        before += [str(SWITCH)] if switched else []
        include = [word for header in before for word in ("-include", header)]
        paths = ["-I", str(csrc), *(["-I", str(HERE / "without_torch")] if self.kind == "cpu" else [])]
        return [str(emulated.compiler()), *FLAGS, *include, *paths, *flags, "-x", "c++", "-"]

    def reads(self, csrc: Path) -> set[str]:
        """Which mutated files are part of it."""
        command = [word for word in self.command(csrc, False, "-MM") if word != "-shared"]
        words = _compiled(command, self.entry).stdout.replace("\\\n", " ").split()
        found = {Path(word).resolve() for word in words if word.endswith((".h", ".cuh"))}
        inside = csrc.resolve()
        return {f"csrc/{path.relative_to(inside)}" for path in found if path.is_relative_to(inside)}


def _compiled(command: Sequence[str], source: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=source, capture_output=True, text=True, check=False)


def targets() -> list[Target]:
    """What there is to compile: the maths, and each operator on a CPU and, once the emulator can call it, in CUDA."""
    found = [Target("maths", "maths"), Target("parts", "cuda")]
    found += [Target("cpu", name) for name in OPERATORS if (ROOT / f"csrc/cpu/{name}.cpp").exists()]
    found += [Target("cuda", name) for name in OPERATORS if name in emulated.SIZES]
    return found


def sources() -> dict[str, str]:
    """The text of every file that is mutated."""
    paths = sorted(path for pattern in MUTATED for path in ROOT.glob(pattern))
    return {str(path.relative_to(ROOT)): path.read_text() for path in paths}


class Tree:
    """A copy of csrc/, in which files are rewritten."""

    def __init__(self, into: Path) -> None:
        self.csrc = into / "csrc"
        shutil.copytree(ROOT / "csrc", self.csrc)

    def write(self, path: str, text: str) -> None:
        (self.csrc.parent / path).write_text(text)

    def library(self, target: Target, switched: bool, name: str) -> tuple[Path | None, str]:
        """The library of a target, or None and what the compiler said."""
        built = self.csrc.parent / f"{name}.so"
        level = [] if switched else ["-O0"]  # a library for one mutant is compiled longer than it runs
        outcome = _compiled(target.command(self.csrc, switched, *level, "-o", str(built)), target.entry)
        return (None if outcome.returncode else built), outcome.stderr


@dataclass
class Library:
    """A target that holds every mutation that could be switched."""

    target: Target
    loaded: ctypes.CDLL

    def switch(self, number: int) -> None:
        ctypes.c_int.in_dll(self.loaded, "fastsal_mutant").value = number

    def reached(self, size: int) -> bytearray:
        """One byte per number: whether a place was reached since the last call."""
        marks = (ctypes.c_ubyte * size).in_dll(self.loaded, "fastsal_reached")
        found = bytearray(marks)
        ctypes.memset(marks, 0, size)
        return found


@dataclass
class Build:
    """All mutations of the C++ files: `switched` by number, `apart` those that a compiler wants by themselves."""

    libraries: list[Library]
    switched: dict[int, Mutation]
    first: dict[int, int]  # per number: the number under which its place is noted as reached
    apart: list[Mutation]
    reads: dict[Target, set[str]]


def build(into: Path, wanted: Iterable[Target], texts: dict[str, str], choice: Choice, jobs: int) -> Build:
    """Compiles `wanted` with the chosen mutations of `texts` behind the switch.

    Some places take no switch (a template argument, the size of an array): those at which the compiler complains are
    taken out, until it complains no more.
    """
    tree, wanted = Tree(into), list(wanted)
    numbers: dict[str, list[tuple[int, Site]]] = {}
    next_number = 0
    for path, text in texts.items():
        numbers[path] = []
        for site in cpp.sites(path, text):
            if not any(mutation.key in choice for mutation in site.mutations):
                continue
            numbers[path].append((next_number, site))
            next_number += len(site.mutations)
    out: set[Site] = {site for placed in numbers.values() for _, site in placed if not site.before}
    with ThreadPoolExecutor(jobs) as pool:
        reads = dict(zip(wanted, pool.map(lambda target: target.reads(tree.csrc), wanted), strict=True))
        wanted = [target for target in wanted if reads[target] & set(texts)]
        pending = wanted
        while pending:
            files = {
                path: Switched(text, [(number, site) for number, site in numbers[path] if site not in out])
                for path, text in texts.items()
            }
            for path, file in files.items():
                tree.write(path, file.text)
            attempts = list(pool.map(functools.partial(_complaints, tree=tree, files=files), pending))
            pending = [target for target, (_, said) in zip(pending, attempts, strict=True) if said]
            fresh = set().union(*(blamed for blamed, _ in attempts)) - out
            if pending and not fresh:
                raise RuntimeError(f"{pending[0]} does not compile:\n{next(said for _, said in attempts if said)}")
            out |= fresh
        made = list(pool.map(lambda t: tree.library(t, True, f"{t.kind}-{t.name}"), wanted))
    for target, (library, said) in zip(wanted, made, strict=True):
        if library is None:
            raise RuntimeError(f"{target} does not compile:\n{said}")
    found = ((target, library) for target, (library, _) in zip(wanted, made, strict=True) if library is not None)
    libraries = [Library(target, load(target, library)) for target, library in found]
    placed = [(number, site) for path in texts for number, site in numbers[path]]
    switched = {
        n + i: m for n, site in placed if site not in out for i, m in enumerate(site.mutations) if m.key in choice
    }
    first = {n + i: n for n, site in placed for i in range(len(site.mutations))}
    apart = [m for _, site in placed if site in out for m in site.mutations if m.key in choice]
    return Build(libraries, switched, first, apart, reads)


def _complaints(target: Target, tree: Tree, files: dict[str, Switched]) -> tuple[set[Site], str]:
    """The places at which the compiler complains, and what it says."""
    command = target.command(tree.csrc, True, "-fsyntax-only", "-fmax-errors=0", "-Werror=vla")  # sizes stay constants
    outcome = _compiled([word for word in command if word not in ("-shared", "-w")], target.entry)
    if not outcome.returncode:
        return set(), ""
    blamed: list[set[Site]] = [set(), set()]  # of the places themselves; of their lines
    context: list[tuple[str, int, int]] = []  # how the compiler came to where it complains, the nearest first
    for line in outcome.stderr.splitlines():
        match = re.match(r"(\S+?):(\d+):(\d+): +(.*)", line)
        if match is None:
            continue
        path = Path(match[1]).resolve()
        inside = path.is_relative_to(tree.csrc.resolve())
        place = (f"csrc/{path.relative_to(tree.csrc.resolve())}" if inside else "", int(match[2]), int(match[3]))
        if "required" in match[4]:
            context.append(place)
        elif match[4].startswith(("error:", "fatal error:")):
            for name, row, column in [at for at in (place, *context) if at[0] in files][:1]:
                exact = files[name].around(row, column)
                blamed[0 if exact else 1] |= {exact} if exact else files[name].line(row)
            context = []
    return blamed[0] or blamed[1], outcome.stderr


def load(target: Target, path: Path) -> ctypes.CDLL:
    library: ctypes.CDLL = emulated.opened(path) if target.kind == "cuda" else ctypes.CDLL(str(path))
    if target.kind == "cpu":
        library.run.restype = ctypes.c_int64
        library.run.argtypes = [ctypes.c_void_p]
    elif target.kind == "maths":
        for name in ("worst_exp_f32", "worst_exp_f64", "worst_log_f64", "farthest_turn"):
            getattr(library, name).restype = ctypes.c_double
    return library
