"""Builds the C++ extension (stable libtorch ABI, abi3) and, when asked or when it can, the CUDA sources.

FASTSAL_NO_EXT=1        no extension at all: every operator runs as plain torch
FASTSAL_CUDA=1 / 0      CUDA sources: demand them / leave them out; unset: only with nvcc and a CUDA build of torch
TORCH_CUDA_ARCH_LIST    what to compile them for instead of CUDA_TARGETS, as torch writes it: "8.0;9.0+PTX"
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from setuptools import setup

ROOT = Path(__file__).parent
STABLE_ABI = "0x020a000000000000"  # torch 2.10: the oldest libtorch that the binary may meet
CUDA_TARGETS = ("75", "80", "86", "89", "90", "100", "120")  # and PTX of the last two, for the devices that follow


def say(message: str) -> None:
    print(f"fastsal: {message}", file=sys.stderr, flush=True)


def cuda_sources(torch: Any) -> list[str]:
    """The CUDA sources to build, with the reason said either way."""
    bindings = ROOT / "csrc/cuda/bindings.cpp"
    registered = re.findall(r'm\.impl\("(\w+)"', bindings.read_text()) if bindings.exists() else []
    sources = sorted({path for name in registered for path in ROOT.glob(f"csrc/cuda/{name}*.cu")})
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
    say(f"building {len(sources)} CUDA sources: nvcc and a CUDA build of torch ({torch.__version__}) are there")
    return [str(path.relative_to(ROOT)) for path in (bindings, *sources)]


def cuda_targets() -> tuple[list[str], str]:
    """Flags of nvcc and their short description; no flags where torch reads them from TORCH_CUDA_ARCH_LIST."""
    if listed := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return [], " ".join(re.split(r"[ ;]+", listed.strip()))
    known = subprocess.run(["nvcc", "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    targets = [target for target in CUDA_TARGETS if f"sm_{target}" in known]
    if left_out := [f"sm_{target}" for target in CUDA_TARGETS if target not in targets]:
        say(f"CUDA targets left out, since this nvcc does not know them: {', '.join(left_out)}")
    flags = [f"-gencode=arch=compute_{target},code=sm_{target}" for target in targets]
    flags += [f"-gencode=arch=compute_{target},code=compute_{target}" for target in targets[-2:]]
    return flags, " ".join([*(f"sm_{t}" for t in targets), *(f"compute_{t}" for t in targets[-2:])])


def cuda_library_folders() -> list[str]:
    """Where nvcc itself finds the CUDA runtime, wherever torch thinks that CUDA is."""
    said = subprocess.run(["nvcc", "--dryrun", "-c", "none.cu"], capture_output=True, text=True, check=False)
    found = re.search(r"LIBRARIES=(.*)", said.stderr + said.stdout)
    return re.findall(r'"-L([^"]+)"', found[1]) if found else []


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
    # Contraction off and no fast-math: rounding is part of the contract. Never -march=native: tiers are chosen at load.
    host = ["-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
    cxx = ["-O3", "-std=c++17", *host, f"-DTORCH_TARGET_VERSION={STABLE_ABI}"]
    nvcc: list[str] = []
    if cuda:
        flags, targets = cuda_targets()
        say(f"CUDA targets: {targets}")
        cxx += ["-DUSE_CUDA", f'-DFASTSAL_CUDA_TARGETS="{targets}"']  # USE_CUDA: torch's headers declare the stream
        nvcc = ["-O3", "-std=c++17", "-fmad=false", *flags, *(f"-Xcompiler={flag}" for flag in host)]
    module = (CUDAExtension if cuda else CppExtension)(
        "fastsal._C", cpp + cuda, extra_compile_args={"cxx": cxx, "nvcc": nvcc}, py_limited_api=True
    )
    if cuda:
        # The runtime goes in: shared, its version would have to be that of torch. Nothing of c10_cuda is stable.
        module.libraries = [name for name in module.libraries if name not in ("cudart", "c10_cuda")]
        module.libraries += ["cudart_static", "rt", "dl", "pthread"]
        module.library_dirs += cuda_library_folders()
    say(f"building the C++ extension from {len(cpp)} sources against torch {torch.__version__}")
    return {
        "ext_modules": [module],
        "cmdclass": {"build_ext": BuildExtension.with_options(use_ninja=True)},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


setup(**extension())
