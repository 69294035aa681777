"""Mutation testing of the kernels: ``python -m tools.mutants``, or ``make test-mutants``.

A mutation is one small mistake in the arithmetic shared by CPU and CUDA (csrc/rows), in a CUDA kernel (csrc/cuda) or in
a Triton kernel (kernels). The cases of tests/kernel_cases.py must notice it.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent.parent / "tests"))  # the cases, and the emulator
