"""What one multiprocessor (NVIDIA: SM; AMD: compute unit) of each target holds.

NVIDIA: table "Technical Specifications per Compute Capability" of the CUDA C++ Programming Guide; registers are given
to warps in units of 256, shared memory to blocks in units of 128 bytes, and CUDA keeps 1 KiB per block from sm_80 on.
AMD: 8 waves per SIMD, each lane with 512 vector registers, given in units of 8; LDS 64 KiB (CDNA 3 ISA guide).
Either has 4 partitions with registers of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

PARTITIONS = 4


@dataclass(frozen=True)
class Target:
    warp: int  # threads
    warps: int  # per multiprocessor
    blocks: int
    registers: int  # 32-bit, per multiprocessor
    register_unit: int  # registers are allotted to a warp in multiples of this
    shared: int  # bytes per multiprocessor
    shared_unit: int
    reserved: int = 0  # bytes of shared memory that the system takes per block

    def occupancy(self, threads: int, registers: int, shared: int) -> float:
        """Resident warps over the most there can be: whole blocks, as many as registers, shared memory and the
        counts of warps and blocks all allow."""
        warps = -(-threads // self.warp)
        per_warp = _up(max(registers, 1) * self.warp, self.register_unit)
        by_registers = self.registers // PARTITIONS // per_warp * PARTITIONS // warps
        per_block = _up(shared + self.reserved, self.shared_unit)
        by_shared = self.shared // per_block if per_block else self.blocks
        return min(self.blocks, self.warps // warps, by_registers, by_shared) * warps / self.warps


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _nvidia(warps: int, blocks: int, shared_kib: int, reserved: int = 1024) -> Target:
    return Target(32, warps, blocks, 65536, 256, shared_kib * 1024, 128, reserved)


TARGETS = {
    "sm_75": _nvidia(32, 16, 64, reserved=0),
    "sm_80": _nvidia(64, 32, 164),
    "sm_86": _nvidia(48, 16, 100),
    "sm_89": _nvidia(48, 24, 100),
    "sm_90": _nvidia(64, 32, 228),
    "sm_100": _nvidia(64, 32, 228),
    "sm_120": _nvidia(48, 24, 100),
    "gfx942": Target(64, 32, 32, 4 * 512 * 64, 8 * 64, 64 * 1024, 512),
}
