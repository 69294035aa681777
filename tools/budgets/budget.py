"""One kernel on one target: what it costs as compiled, what it may cost, and where it goes over."""

from __future__ import annotations

from dataclasses import dataclass

from tools.budgets.targets import TARGETS

# The least share of a multiprocessor's warps that may be resident, by what the kernel does.
OCCUPANCY_FLOOR = {"streaming": 0.75, "row on chip": 0.25}


@dataclass(frozen=True)
class Budget:
    """A kernel as it was compiled for one target."""

    backend: str  # "triton" or "cuda"
    kernel: str  # the name of the kernel's function
    call: str  # what it was compiled for: norm, dtypes, size and alignment of a row
    aligned: bool  # rows of a multiple of 8 elements on a 16-byte base: 128-bit accesses are asked for
    target: str  # a key of TARGETS
    kind: str  # a key of OCCUPANCY_FLOOR
    threads: int  # per block
    registers: int  # per thread
    spills: int  # bytes of spill stores and loads of a thread
    stack: int  # bytes of local memory of a thread
    shared: int  # bytes per block, static and dynamic
    wide_loads: int  # 128-bit loads from global memory in the code
    wide_stores: int
    loads_due: int  # how many there are when every operand moves 16 bytes at a time wherever a thread has as many
    stores_due: int
    fused: int  # fused multiply-adds that a compiler made of a product and a sum: rounding is part of the contract
    fused_in_division: int = 0  # those that a division or root consists of

    @property
    def name(self) -> str:
        return f"{self.backend} {self.kernel} ({self.call})"

    @property
    def occupancy(self) -> float:
        return TARGETS[self.target].occupancy(self.threads, self.registers, self.shared)

    def broken(self) -> dict[str, str]:
        """Every budget that this kernel breaks, and how."""
        found = {}
        if self.spills:
            found["spills"] = f"spills {self.spills} bytes, 0 allowed"
        if self.stack:
            found["stack"] = f"uses {self.stack} bytes of stack, 0 allowed"
        floor = OCCUPANCY_FLOOR[self.kind]
        if self.occupancy < floor:
            found["occupancy"] = f"occupancy {self.occupancy:.1%}, at least {floor:.0%} asked of a {self.kind} kernel"
        if self.aligned and self.wide_loads < self.loads_due:
            found["loads"] = f"{self.wide_loads} 128-bit loads, {self.loads_due} asked for"
        if self.aligned and self.wide_stores < self.stores_due:
            found["stores"] = f"{self.wide_stores} 128-bit stores, {self.stores_due} asked for"
        if self.fused:
            found["fused"] = f"{self.fused} fused multiply-adds, 0 allowed"
        return found
