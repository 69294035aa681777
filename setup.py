"""Builds the C++ extension (stable libtorch ABI, abi3) and, when asked or when it can, the CUDA sources.

FASTSAL_NO_EXT=1        no extension at all: every operator runs as plain torch
FASTSAL_CUDA=1 / 0      CUDA sources: demand them / leave them out; unset: only with nvcc and a CUDA build of torch
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from setuptools import setup

ROOT = Path(__file__).parent
STABLE_ABI = "0x020a000000000000"  # torch 2.10: the oldest libtorch that the binary may meet


def say(message: str) -> None:
    print(f"fastsal: {message}", file=sys.stderr, flush=True)


def cuda_sources(torch: Any) -> list[str]:
    """The CUDA sources to build, with the reason said either way."""
    bound = (ROOT / "csrc/cuda/bindings.cpp").exists()  # kernels that nothing registers yet are no use to anyone
    sources = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/cuda/*.cu")) if bound else []
    asked = os.environ.get("FASTSAL_CUDA", "")
    if asked == "0":
        say("CUDA sources left out: FASTSAL_CUDA=0")
        return []
    missing = []
    if not sources:
        missing.append("this version registers no CUDA kernels")
    if shutil.which("nvcc") is None:
        missing.append("nvcc is not on the PATH")
    if torch.version.cuda is None:
        missing.append(f"torch {torch.__version__} is a build without CUDA")
    if missing and asked == "1":
        raise SystemExit(f"fastsal: FASTSAL_CUDA=1, but {'; '.join(missing)}")
    if missing:
        say(f"CUDA sources left out: {'; '.join(missing)}")
        return []
    say(f"building {len(sources)} CUDA sources")
    return sources


def extension() -> dict[str, Any]:
    if os.environ.get("FASTSAL_NO_EXT") == "1":
        say("no extension: FASTSAL_NO_EXT=1")
        return {}
    try:
        import torch
        from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension
    except ImportError as error:
        raise SystemExit(
            f"fastsal: torch is needed to build the extension ({error}). Install torch first and pass "
            "--no-build-isolation, or set FASTSAL_NO_EXT=1 to do without the extension"
        ) from error
    cuda = cuda_sources(torch)
    cpp = sorted(str(path.relative_to(ROOT)) for path in [ROOT / "csrc/module.cpp", *ROOT.glob("csrc/cpu/*.cpp")])
    kind = CUDAExtension if cuda else CppExtension
    # Contraction off and no fast-math: rounding is part of the contract. Never -march=native: tiers are chosen at load.
    flags = ["-O3", "-std=c++17", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
    module = kind(
        "fastsal._C",
        cpp + cuda,
        extra_compile_args={
            "cxx": [*flags, f"-DTORCH_TARGET_VERSION={STABLE_ABI}"],
            "nvcc": ["-O3", "-fmad=false", f"-DTORCH_TARGET_VERSION={STABLE_ABI}", "-DUSE_CUDA"],
        },
        py_limited_api=True,
    )
    say(f"building the C++ extension from {len(cpp)} sources against torch {torch.__version__}")
    return {
        "ext_modules": [module],
        "cmdclass": {"build_ext": BuildExtension.with_options(use_ninja=True)},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


setup(**extension())
