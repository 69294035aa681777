"""The tool that mutates kernels: what its rules make, what they leave alone, and that it tells caught from survived."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
if not (ROOT / "tools" / "mutants").is_dir():
    pytest.skip("tested without the repository around it: there is no tools/ beside tests/", allow_module_level=True)
if sys.platform == "win32":
    pytest.skip("mutants are tried in forked processes", allow_module_level=True)
sys.path.insert(0, str(ROOT))

from tools.mutants import cpp, libraries, python, survivors, trial  # noqa: E402
from tools.mutants.mutation import Choice, Mutation, Outcome, Switched  # noqa: E402


def cpp_texts(source: str, rule: str | None = None) -> set[str]:
    """Every mutated form of a C++ text."""
    found = [mutation for site in cpp.sites("a.h", source) for mutation in site.mutations]
    return {mutation.applied(source) for mutation in found if rule in (None, mutation.rule)}


def python_texts(source: str, rule: str | None = None) -> set[str]:
    found = python.mutations("a.py", source)
    return {mutation.applied(source) for mutation in found if rule in (None, mutation.rule)}


# ------------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize(
    ("rule", "source", "mutated"),
    [
        ("comparison", "int f(int a) { return a < n; }", ["a <= n", "a > n"]),
        ("comparison", "int f(int a) { return a >= n; }", ["a > n", "a <= n"]),
        ("comparison", "int f(int a) { return a == n; }", ["a != n"]),
        ("sign", "int f(int a) { return a + b; }", ["a - b"]),
        ("sign", "void f(int a) { a -= b; }", ["a += b"]),
        ("sign", "int f(int a) { return -a; }", ["return  a"]),
        ("integer", "int f() { return 0xD2511F53u; }", [f"{0xD2511F54}u", f"{0xD2511F52}u"]),
        ("integer", "int f() { return 0; }", ["return 1", "return (0 - 1)"]),
        ("index", "int f(int* p) { return p[i]; }", ["p[(i) + 1]", "p[(i) - 1]"]),
        ("condition", "bool f() { return a && b < 2; }", ["return true && b < 2", "return a && true"]),
        ("condition", "bool f() { return a || b; }", ["return false || b", "return a || false"]),
        ("condition", "void f() { if (i < n) g(); }", ["if (true) g()", "if (false) g()"]),
        ("condition", "int f() { return a < b ? a : b; }", ["return true ? a : b", "return false ? a : b"]),
        ("condition", "int f() { return a & 0xff; }", ["return a ;"]),
        ("negation", "bool f() { return !a; }", ["return  a"]),
        ("negation", "bool f() { return true; }", ["return false"]),
        ("barrier", "void f() { __syncthreads(); g(); }", ["{ ; g(); }"]),
        ("barrier", "void f() { __syncwarp(mask); }", ["{ ; }"]),
        ("swap", "float f() { return fminf(a, b); }", ["fmaxf(a, b)"]),
        ("swap", "int f(int* rows, int* ids) { return g(rows); }", ["g(ids)"]),
        ("swap", "int f() { return call.rows[2]; }", ["call.ids[2]"]),
    ],
)
def test_a_rule_makes_what_it_says(rule: str, source: str, mutated: list[str]) -> None:
    texts = cpp_texts(source, rule)
    assert len(texts) == len(mutated), texts
    for part in mutated:
        assert sum(part in text for text in texts) == 1, f"{part} not in {texts}"


def test_comments_strings_directives_and_template_brackets_are_not_mutated() -> None:
    source = """#pragma unroll 4
#include <vector>  // 1 < 2
/* a + 1 */ const char* name = "a < b + 1";
template <class T> struct Box { std::vector<T> held; const T* from; T&& moved; };
__global__ void __launch_bounds__(kHeld, turns > 2 ? 1 : 2) f();
"""
    assert cpp_texts(source) == set()


def test_what_only_nvcc_compiles_and_what_only_has_a_type_is_not_mutated() -> None:
    source = """#if defined(__CUDA_ARCH__)
int a = 1 + b;
#ifdef OTHER
int c = 2;
#endif
int d = 3;
#else
int e = 4;
#endif
using Slope = decltype(value(grad[0] + 1));
int f = 5;
"""
    assert {text for text in cpp_texts(source) if "int a = 1 + b;" not in text or "int d = 3;" not in text} == set()
    assert len(cpp_texts(source)) == 4  # 4 and 5, one more and one less


def test_a_declaration_is_not_taken_for_a_use_of_its_name() -> None:
    assert cpp_texts("void f(const long* rows, const long *ids) {}", "swap") == set()


@pytest.mark.parametrize(
    ("rule", "source", "mutated"),
    [
        ("comparison", "a = b < c", ["b <= c", "b > c"]),
        ("comparison", "a = b is not None", ["b is None"]),
        ("sign", "a = (b  # - here\n     - c)", ["+ c"]),
        ("sign", "a = -b", ["a =  b"]),
        ("integer", "a = 7", ["a = 8", "a = 6"]),
        ("index", "tl.store(p + i, v)", ["tl.store((p + i) + 1, v)", "tl.store((p + i) - 1, v)"]),
        ("index", "a = b[i]", ["b[i + 1]", "b[i - 1]"]),
        ("condition", "a = tl.load(p, mask=m)", ["mask=None"]),
        ("condition", "a = b & c", ["a = (b)", "a = (c)"]),
        ("condition", "a = b and c", ["a = (b)", "a = (c)"]),
        ("condition", "if a:\n    b()", ["if True:", "if False:"]),
        ("condition", "a = tl.where(c, d, e)", ["((c) == (c))", "((c) != (c))"]),
        ("negation", "a = not b", ["a =     b"]),
        ("negation", "a = f(mask=True)", ["mask=False"]),
        ("barrier", "tl.debug_barrier()", ["pass"]),
        ("swap", "a = tl.minimum(b, c)", ["tl.maximum(b, c)"]),
        ("swap", "def f(rows, ids):\n    return rows", ["return ids"]),
    ],
)
def test_a_rule_for_triton_makes_what_it_says(rule: str, source: str, mutated: list[str]) -> None:
    texts = python_texts(source, rule)
    assert len(texts) == len(mutated), texts
    for part in mutated:
        assert sum(part in text for text in texts) == 1, f"{part} not in {texts}"


def test_docstrings_comments_and_annotations_of_triton_are_not_mutated() -> None:
    assert python_texts('def f(a: tl.constexpr = None) -> "1 < 2":\n    """a + 1"""  # b - 2\n    return a\n') == set()


@pytest.mark.parametrize(
    ("source", "alike"),
    [
        ("v = a > b ? a : b;", ["a >= b"]),
        ("v = f(x) < b[1] ? b[1] : f(x);", ["f(x) <= b[1]"]),
        ("v = a > 0 ? a : -a;", []),
        ("v = a > b ? c : b;", []),
        ("v = c && a > b ? a : b;", []),
        ("v = a > b;", []),
        ("v = a == b ? a : b;", []),
    ],
)
def test_the_larger_of_two_is_one_number_wherever_the_boundary_is(source: str, alike: list[str]) -> None:
    source = f"void f() {{ {source} }}"
    found = [m.applied(source) for site in cpp.sites("a.h", source) for m in site.mutations if m.alike]
    assert len(found) == len(alike) and all(part in text for part, text in zip(alike, found, strict=True))


@pytest.mark.parametrize(
    ("source", "alike"),
    [
        ("v = tl.where(a > b, a, b)", ["a >= b"]),
        ("v = c(a) if c(a) < b else b", ["c(a) <= b"]),
        ("v = tl.where(a > b, a, c)", []),
        ("v = tl.where((a > b) & c, a, b)", []),
        ("v = tl.where(a == b, a, b)", []),
    ],
)
def test_the_larger_of_two_in_triton(source: str, alike: list[str]) -> None:
    found = [m.applied(source) for m in python.mutations("a.py", source) if m.alike]
    assert len(found) == len(alike) and all(part in text for part, text in zip(alike, found, strict=True))


def test_what_can_only_take_an_equal_number_is_counted_apart_unless_it_is_caught() -> None:
    mutation = Mutation("a.h", 0, 1, "", "comparison", "> to >=", 3, "a > b ? a : b", alike=True)
    report = survivors.Report.of([*planted(), Outcome.survivor(mutation)], ["a.h"], {})
    assert (report.total.alike, report.total.survived, report.total.share) == (1, 1, 50.0)
    assert [outcome.mutation.line for outcome in report.unlisted] == [1]
    never_run = survivors.Report.of([Outcome.survivor(mutation, reached=False)], ["a.h"], {})
    assert (never_run.total.alike, never_run.total.survived) == (0, 1)
    caught = survivors.Report.of([Outcome(mutation, "caught")], ["a.h"], {})
    assert (caught.total.alike, caught.total.caught) == (0, 1)


def test_equal_lines_have_keys_of_their_own() -> None:
    source = "int f() { return a < b; }\nint f() { return a < b; }\n"
    keys = [mutation.key for site in cpp.sites("a.h", source) for mutation in site.mutations]
    assert len(set(keys)) == len(keys) and sum(key.endswith("#2") for key in keys) == len(keys) // 2


# ---------------------------------------------------------------------------------------------- switched


def test_the_switched_text_computes_what_each_mutation_computes(tmp_path: Path) -> None:
    """All mutations of a small function, in one library and each in a library of its own, on the same arguments."""
    import ctypes
    import subprocess

    source = """extern "C" int f(int a, int b, const int* v) {
  int low = a - 2, high = b + 3;
  if (!(a < b) && b != 4) low += v[b & 1];
  return a >= 0 || low == 1 ? -low : high - v[1];
}
"""
    compiler = libraries.emulated.compiler()
    arguments = [(a, b) for a in range(-2, 3) for b in range(6)]

    def values(path: Path, number: int | None = None) -> list[int]:
        library = ctypes.CDLL(str(path))
        if number is not None:
            ctypes.c_int.in_dll(library, "fastsal_mutant").value = number
        memory = (ctypes.c_int * 8)(*range(40, 120, 10))
        inside = ctypes.cast(ctypes.addressof(memory) + 12, ctypes.POINTER(ctypes.c_int))
        return [library.f(a, b, inside) for a, b in arguments]

    def compiled(text: str, name: str, *flags: str) -> Path:
        built = tmp_path / f"{name}.so"
        flags = ("-std=c++17", "-w", "-fwrapv", "-fPIC", "-shared", *flags)  # an overflow wraps: no compiler may choose
        command = [compiler, *flags, "-x", "c++", "-", "-o", str(built)]
        subprocess.run(command, input=text, text=True, check=True, capture_output=True)
        return built

    sites, placed, number = cpp.sites("a.h", source), [], 0
    for site in sites:
        placed.append((number, site))
        number += len(site.mutations)
    switched = compiled(Switched(source, placed).text, "all", "-include", str(libraries.SWITCH))
    assert values(switched, -1) == values(compiled(source, "none"))
    assert number >= 40
    # one library of its own for every seventh: they cover all rules
    chosen = [(first + at, m) for first, site in placed for at, m in enumerate(site.mutations) if (first + at) % 7 == 0]
    assert {mutation.rule for _, mutation in chosen} >= {"comparison", "sign", "integer", "condition"}
    for at, mutation in chosen:
        assert values(switched, at) == values(compiled(mutation.applied(source), str(at))), mutation.place


# ----------------------------------------------------------------------------------------------- verdicts


def trial_of(*steps: Any) -> trial.Verdict:
    checks = [trial.Step(f"step {number}", step, 0.0) for number, step in enumerate(steps)]
    ((_, verdict),) = trial.run([trial.Trial("key", checks)], 1)
    return verdict


def test_a_mutant_that_nothing_notices_survives() -> None:
    assert trial_of(lambda: None, lambda: None) == trial.Verdict(False, 1, "")


def raise_error() -> None:
    raise AssertionError("written beside the output")


def hang() -> None:
    while True:
        pass


@pytest.mark.parametrize(
    ("step", "how"),
    [(lambda: "wrong", "disagrees"), (raise_error, "disagrees"), (os.abort, "crash"), (hang, "endless")],
    ids=["wrong", "raises", "crashes", "hangs"],
)
def test_a_mutant_is_caught(step: Any, how: str, tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    assert trial_of(before.touch, step, after.touch) == trial.Verdict(True, 1, how)
    assert before.exists() and not after.exists()  # the first to notice ends the trial


def planted() -> Iterator[Outcome]:
    """One mutant that lives and one that is caught."""
    for number, state in enumerate(("survived", "caught")):
        yield Outcome(Mutation("a.h", 0, 1, "", "sign", "+ to -", number + 1, f"line {number};"), state)


def test_a_planted_survivor_is_reported_and_a_planted_kill_is_counted() -> None:
    report = survivors.Report.of(planted(), ["a.h"], {})
    assert (report.total.caught, report.total.survived) == (1, 1)
    assert [outcome.mutation.line for outcome in report.unlisted] == [1]
    assert "a.h:1: + to -" in report.listing() and "NOT LISTED" in report.listing()
    assert any("not listed" in fault for fault in report.faults())


def test_a_listed_survivor_needs_its_reason_and_a_stale_one_fails() -> None:
    text = "# mutants\n= nothing tells them apart\na.h: line 0; [+ to -]\na.h: line 1; [+ to -]\n"
    report = survivors.Report.of(planted(), ["a.h"], survivors.read(text))
    assert not report.unlisted and "nothing tells them apart" in report.listing()
    assert report.stale == ["a.h: line 1; [+ to -]"]  # it is caught
    assert any("caught or no longer there" in fault for fault in report.faults())
    with pytest.raises(ValueError, match="expected a reason"):
        survivors.read("a.h: line 0; [+ to -]\n")
    # a run over other files leaves the entries of this one alone
    assert survivors.Report.of([], ["b.h"], survivors.read(text)).stale == []


def test_a_sample_is_fixed_by_the_keys_and_asks_only_for_what_it_tried() -> None:
    keys = [f"a.h: line {number}; [+ to -]" for number in range(1000)]
    some, more = ({key for key in keys if key in Choice(share)} for share in (0.25, 0.5))
    assert some < more and 200 < len(some) < 300
    assert [key for key in keys[:16] if key in some] == [keys[at] for at in (3, 10, 13, 15)]  # on every machine
    left_out = next(key for key in keys if key not in some)
    reasons = dict.fromkeys([*sorted(some)[:1], left_out], "listed")
    report = survivors.Report.of([], ["a.h"], reasons, Choice(0.25))
    assert report.stale == sorted(some)[:1]
    assert [key for key in keys if key in Choice(named=frozenset(keys[:1]))] == keys[:1]


def test_less_than_95_per_cent_fails() -> None:
    caught = [Outcome(Mutation("a.h", i, i, "", "sign", "+ to -", i, f"{i}"), "caught") for i in range(19)]
    alive = [Outcome(Mutation("a.h", i, i, "", "sign", "+ to -", i, f"{i}"), "survived") for i in (50, 51)]
    reasons = {outcome.mutation.key: "listed" for outcome in alive}
    for survived, fails in ((alive[:1], False), (alive, True)):
        known = {outcome.mutation.key: reasons[outcome.mutation.key] for outcome in survived}
        assert bool(survivors.Report.of([*caught, *survived], ["a.h"], known).faults()) == fails


def test_equivalent_survivors_are_listed_and_do_not_count_against_the_score() -> None:
    caught = [Outcome(Mutation("a.h", i, i, "", "sign", "+ to -", i, f"{i}"), "caught") for i in range(19)]
    alive = [Outcome(Mutation("a.h", i, i, "", "sign", "+ to -", i, f"{i}"), "survived") for i in (50, 51, 52)]
    keys = [outcome.mutation.key for outcome in alive]
    listed = survivors.read(f"== the same number\n{keys[0]}\n{keys[1]}\n= too long a row\n{keys[2]}\n")
    report = survivors.Report.of([*caught, *alive], ["a.h"], listed)
    assert (report.total.survived, report.total.equivalent, report.total.score) == (3, 2, 95.0)
    assert report.faults() == [] and report.total.share < 95
    assert survivors.Report.of([*caught, *alive], ["a.h"], dict.fromkeys(keys, "too long a row")).faults()


def test_what_no_compiler_takes_is_counted_apart() -> None:
    refused = [Outcome(Mutation("a.h", 0, 1, "", "sign", "+ to -", 1, "a"), "invalid")]
    report = survivors.Report.of([*refused, *planted()], ["a.h"], {})
    assert (report.total.invalid, report.total.share) == (1, 50.0)
