"""One row of the table: what a compiled kernel costs, what it may cost, and where it goes over."""

from __future__ import annotations

from dataclasses import dataclass

from tools.budgets.targets import TARGETS

# The least share of a multiprocessor's warps that may be resident, by what the kernel does.
OCCUPANCY_FLOOR = {"streaming": 0.75, "row on chip": 0.25, "small": 0.25}


@dataclass(frozen=True)
class Budget:
    """A kernel as it was compiled for one target. Numbers that a tool did not report are None, never 0."""

    backend: str  # "triton" or "cuda"
    kernel: str  # operator and variant: "pgd_step linf"
    dtypes: str  # of x (or the logits) and the gradient: "fp32", "fp32/bf16"
    rows: str  # "aligned" (a multiple of 8 elements on a 16-byte base) or "any"
    target: str  # a key of TARGETS
    kind: str  # a key of OCCUPANCY_FLOOR
    threads: int  # per block
    registers: int  # per thread
    spills: int  # bytes of spill stores and loads per thread (AMD: registers spilled)
    stack: int  # bytes of local memory per thread (AMD: scratch)
    shared: int  # bytes per block, static and dynamic
    wide_loads: int  # 128-bit loads from global memory in the code
    wide_stores: int
    operands_read: int  # row-sized operands that the kernel reads with a width that 128 bits divide: one load each
    operands_written: int
    narrow: int  # loads and stores of row elements with less than the width of an aligned row; 0 for "any"
    fused: int  # fused floating-point multiply-adds
    fused_allowed: (
        bool  # division, square root, exp and log are made of them where rounding is not part of the contract
    )
    launches: int  # of the whole operator, for rows of the kernel's size
    reads: float | None  # row passes, counted: bytes read and written over the bytes of one row of x
    writes: float | None

    @property
    def name(self) -> str:
        return f"{self.backend} {self.kernel} {self.dtypes} {self.rows} {self.target}"

    @property
    def occupancy(self) -> float:
        return TARGETS[self.target].occupancy(self.threads, self.registers, self.shared)

    def faults(self) -> list[str]:
        """Every budget that this kernel breaks, in words."""
        found = []
        if self.spills:
            found.append(f"spills {self.spills} bytes, 0 allowed")
        if self.stack:
            found.append(f"uses {self.stack} bytes of stack, 0 allowed")
        floor = OCCUPANCY_FLOOR[self.kind]
        if self.occupancy < floor:
            found.append(f"occupancy {self.occupancy:.0%}, at least {floor:.0%} asked of a {self.kind} kernel")
        if self.rows == "aligned":
            if self.wide_loads < self.operands_read:
                found.append(f"{self.wide_loads} 128-bit loads for {self.operands_read} row operands read")
            if self.wide_stores < self.operands_written:
                found.append(f"{self.wide_stores} 128-bit stores for {self.operands_written} row operands written")
            if self.narrow:
                found.append(f"{self.narrow} narrow accesses to rows, 0 allowed")
        if self.fused and not self.fused_allowed:
            found.append(f"{self.fused} fused multiply-adds, 0 allowed")
        return [f"{self.name}: {fault}" for fault in found]
