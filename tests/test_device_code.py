"""The tool that reads compiled GPU code: its parsers, its formula of occupancy and its budgets, without a compiler."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="tools/budgets uses the disassembler in triton's wheel")
ROOT = Path(__file__).parents[1]
if not (ROOT / "tools/budgets").is_dir():
    pytest.skip("only in the repository", allow_module_level=True)
sys.path.insert(0, str(ROOT))

from tools.budgets import code, cuda_kernels, exceptions, table, triton_kernels  # noqa: E402
from tools.budgets.budget import Budget  # noqa: E402
from tools.budgets.targets import TARGETS  # noqa: E402

SASS = """
//--------------------- .text.first --------------------------
        .section        .text.first,"ax",@progbits
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/                   LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0030*/                   LDG.E.64 R4, desc[UR4][R2.64] ;
        /*0040*/                   LDS.128 R4, [R2] ;
        /*0050*/               @P1 STG.E.128 desc[UR4][R2.64], R4 ;
        /*0060*/                   STL.64 [R1], R4 ;
        /*0070*/                   LDL R4, [R1] ;
        /*0080*/                   DFMA R4, R4, R6, R8 ;
        /*0090*/                   FFMA.FTZ R4, R4, R6, R8 ;
        /*00a0*/                   IMAD.WIDE R4, R4, R6, R8 ;
        /*00b0*/                   HFMA2.MMA R4, -RZ, RZ, 0, 0 ;
        /*00c0*/              @!P2 HFMA2 R4, -RZ, RZ, 1.875, 0 ;
        /*00d0*/                   HFMA2 R4, R4, R6, R8 ;
//--------------------- .nv.info.second --------------------------
        /*0000*/                   DFMA R4, R4, R6, R8 ;
//--------------------- .text.second --------------------------
        /*0000*/                   FADD R4, R4, R6 ;
"""

PTXAS = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z5first' for 'sm_90'
ptxas info    : Function properties for _Z5first
    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 35 registers, used 1 barriers, 8 bytes cumulative stack size, 256 bytes smem
ptxas info    : Compiling entry function '_Z6second' for 'sm_90'
ptxas info    : Function properties for _Z6second
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 20 registers
"""

GCN = """
	global_load_dwordx4 v[8:11], v[2:3], off
	global_load_dwordx2 v[8:9], v[2:3], off
	global_store_dwordx4 v[2:3], v[8:11], off
	scratch_store_dword off, v1, s32
	v_fma_f64 v[2:3], v[4:5], v[6:7], v[8:9]
	v_pk_fma_f32 v[2:3], v[4:5], v[6:7], v[8:9]
	v_mad_u64_u32 v[2:3], s[0:1], v4, v5, v[6:7]
    .agpr_count:     2
    .group_segment_fixed_size: 64
    .private_segment_fixed_size: 12
    .sgpr_spill_count: 3
    .vgpr_count:     31
    .vgpr_spill_count: 1
"""


def test_sass_is_read_kernel_by_kernel() -> None:
    kernels = code.by_kernel(SASS)
    assert list(kernels) == ["first", "second"]
    assert code.sass(kernels["first"]) == code.Code(wide_loads=2, wide_stores=1, local=12, fused=3)
    assert code.sass(kernels["second"]) == code.Code(0, 0, 0, 0)


def test_what_ptxas_and_cuobjdump_say_of_registers_is_read() -> None:
    assert code.ptxas_usages(PTXAS) == {
        "_Z5first": code.Usage(registers=35, stack=8, shared=256, spills=28),
        "_Z6second": code.Usage(registers=20, stack=0, shared=0, spills=0),
    }
    text = "Resource usage:\n Common:\n  GLOBAL:0\n Function one:\n  REG:40 STACK:8 SHARED:32 LOCAL:0 CONSTANT[0]:400"
    assert code.usages(text) == {"one": code.Usage(40, 8, 32)}


def test_amd_assembly_is_read() -> None:
    assert code.gcn(GCN) == code.Code(wide_loads=1, wide_stores=1, local=4, fused=2)
    assert code.amd_usage(GCN) == code.Usage(registers=33, stack=12, shared=64, spills=4)
    with pytest.raises(ValueError, match="vgpr_count"):
        code.amd_usage("nothing")


def test_a_fused_multiply_add_is_a_divisions_only_where_something_divides() -> None:
    assert code.FUSED_PTX.findall("\tfma.rn.f32 %f1, %f2, %f3, %f4;\n\t@%p1 fma.rn.f64 %fd1, %fd2, %fd3, %fd4;\n") != []
    assert not code.FUSED_PTX.search("\tmul.rn.f32 %f1, %f2, %f3;\n\tmad.lo.s32 %r1, %r2, %r3, %r4;\n")
    assert code.DIVIDES_PTX.search("\tdiv.rn.f64 %fd1, %fd2, %fd3;\n") and code.DIVIDES_PTX.search(
        "\tsqrt.rn.f64 %a, %b;"
    )
    assert not code.DIVIDES_PTX.search("\tdiv.s64 %rd1, %rd2, %rd3;\n\tdiv.u32 %r1, %r2, %r3;\n")
    seven = code.Code(0, 0, 0, fused=7)
    assert code.fused_by_rule(0, True, seven) == (0, 7)
    assert code.fused_by_rule(2, True, seven) == (2, 5)
    assert code.fused_by_rule(0, False, seven) == (7, 0)


@pytest.mark.parametrize(
    ("target", "threads", "registers", "shared", "expected"),
    [
        ("sm_80", 256, 32, 0, 1.0),  # 65536 / (32 * 32) = 64 warps
        ("sm_80", 256, 40, 0, 48 / 64),  # 16384 / 1280 = 12 warps of each quarter: 48, 6 blocks of 8
        ("sm_80", 384, 40, 0, 48 / 64),  # 4 blocks of 12
        (
            "sm_80",
            512,
            41,
            0,
            32 / 64,
        ),  # 41 registers are given as 48: 10 warps of a quarter, 40 in all, 2 blocks of 16
        ("sm_80", 1024, 65, 0, 0.0),  # 7 warps of a quarter: no block of 32 fits
        ("sm_80", 32, 16, 0, 32 / 64),  # at most 32 blocks
        ("sm_80", 256, 32, 40_000, 4 * 8 / 64),  # 167936 / (40960 + 1024, in units of 128)
        ("sm_75", 256, 32, 32_768, 2 * 8 / 32),  # 65536 / 32768
        ("sm_86", 512, 40, 0, 48 / 48),
        ("gfx942", 256, 64, 0, 1.0),  # 512 / 64 = 8 waves of a SIMD, 32 of a unit
        ("gfx942", 256, 72, 0, 28 / 32),  # 7 waves of a SIMD
        ("gfx942", 256, 32, 32_768, 2 * 4 / 32),  # 2 blocks of 4 waves
    ],
)
def test_occupancy_by_hand(target: str, threads: int, registers: int, shared: int, expected: float) -> None:
    assert TARGETS[target].occupancy(threads, registers, shared) == pytest.approx(expected)


GOOD = Budget("cuda", "linf_step", "fp32", True, "sm_80", "streaming", 384, 40, 0, 0, 48, 3, 1, 3, 1, 0, 0)


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({}, set()),
        ({"spills": 4}, {"spills"}),
        ({"stack": 8}, {"stack"}),
        ({"registers": 48}, {"occupancy"}),
        ({"registers": 128}, {"occupancy"}),
        ({"registers": 128, "threads": 256, "kind": "row on chip"}, set()),
        ({"registers": 136, "threads": 512, "kind": "row on chip"}, {"occupancy"}),
        ({"wide_loads": 2}, {"loads"}),
        ({"wide_stores": 0}, {"stores"}),
        ({"wide_loads": 0, "wide_stores": 0, "aligned": False}, set()),
        ({"fused": 1}, {"fused"}),
        ({"fused_in_division": 9}, set()),
    ],
)
def test_every_budget_can_be_broken(change: dict[str, object], broken: set[str]) -> None:
    assert set(dataclasses.replace(GOOD, **change).broken()) == broken  # type: ignore[arg-type]


def test_an_exception_excuses_what_it_measures_and_nothing_more() -> None:
    slow = dataclasses.replace(GOOD, registers=48)  # 10 warps of a quarter: 3 blocks of 12, 56 %
    line = exceptions.Exempt("cuda", "linf_step", "occupancy", 0.5625, "for this test", ("sm_80",))
    assert len(exceptions.faults([slow], ())) == 1
    assert exceptions.faults([slow], (line,)) == []
    worse, elsewhere = dataclasses.replace(GOOD, registers=64), dataclasses.replace(slow, target="sm_90")
    assert any("37.5%" in fault for fault in exceptions.faults([worse], (line,)))
    assert len(exceptions.faults([slow, elsewhere], (line,))) == 1
    assert exceptions.faults([GOOD], (line,)) == ["exceptions: cuda linf_step, occupancy 0.5625: kept by now"]
    assert exceptions.faults([dataclasses.replace(GOOD, backend="triton")], (line,)) == []  # nothing of CUDA was built


def test_kernels_are_known_by_their_names() -> None:
    known = cuda_kernels.described(
        "void fastsal::linf_step_kernel<float, fastsal::float16, 4>(fastsal::PgdStepCall, long)"
    )
    assert known == ("linf_step", "fp32, grad fp16, 4 at a time", True, 2, 1)
    known = cuda_kernels.described("void fastsal::l2_step_kernel<double, float, 2>(fastsal::PgdStepCall, long, bool)")
    assert known == ("l2_step", "fp64, grad fp32, 2 turns", True, 4, 1)
    known = cuda_kernels.described("void fastsal::kl_divergence_long_kernel<float, true>(fastsal::KlDivergenceCall)")
    assert known == ("kl_divergence_long", "fp32, 128 bits", True, 4, 2)
    with pytest.raises(ValueError, match="not a kernel"):
        cuda_kernels.described("main")
    assert "-fmad=false" in cuda_kernels.flags()


def test_due_accesses_are_counted_from_the_kernels_loads() -> None:
    ttir = """
    %c = tt.splat %clip_min : !tt.ptr<f32> -> tensor<1024x!tt.ptr<f32>>
    %d = tt.addptr %c, %channel : tensor<1024x!tt.ptr<f32>>, tensor<1024xi32>
    %low = tt.load %d, %inside : tensor<1024x!tt.ptr<f32>>
    %x_1 = tt.splat %x : !tt.ptr<f32> -> tensor<1024x!tt.ptr<f32>>
    %clean = tt.load %x_1, %inside, %zero : tensor<1024x!tt.ptr<f32>>
    %tile = tt.load %logits, %inside, %zero : tensor<2x1024x!tt.ptr<bf16>>
    %id = tt.load %ids : !tt.ptr<i64>
    tt.store %x_1, %clean, %inside : tensor<1024x!tt.ptr<f32>>
    """
    assert triton_kernels.due(ttir, "load", 256) == 1 + 1
    assert triton_kernels.due(ttir, "load", 128) == 2 + 2
    assert triton_kernels.due(ttir, "store", 128) == 2


def test_the_table_shows_what_changed() -> None:
    part = table.backend_part("cuda", "nvcc 1", [GOOD, dataclasses.replace(GOOD, target="sm_90", spills=4)])
    text = table.render({"triton": table.backend_part("triton", "triton 1", []), "cuda": part}, ())
    assert table.part_of(text, "cuda") == ("nvcc 1", part)
    assert table.part_of(text, "hip") == ("", "")
    assert "40 · 75% |" in part and "**spill 4**" in part
    changed = text.replace("40 · 75% |", "39 · 75% |")
    assert len(table.differences(text, text)) == 0 and len(table.differences(changed, text)) == 2


def test_the_written_table_tells_of_every_exception() -> None:
    text = (ROOT / "docs/kernel_budgets.md").read_text()
    parts = {backend: table.part_of(text, backend)[1] for backend in ("triton", "cuda")}
    assert all(parts.values()) and table.render(parts) == text
