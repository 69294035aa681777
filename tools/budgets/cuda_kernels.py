"""The CUDA kernels, compiled by nvcc for every target: their rows of the table."""

from __future__ import annotations

import shutil

from tools.budgets.budget import Budget


def missing() -> str:
    """Why there is nothing to measure; empty where there is."""
    return "" if shutil.which("nvcc") else "nvcc is not on the PATH"


def budgets(jobs: int) -> list[Budget]:
    """One row per kernel and target, `jobs` compilations at a time."""
    return []
