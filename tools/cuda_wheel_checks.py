"""What can be said of a wheel with CUDA sources where there is no GPU: run by tools/cuda_torch_check in the environment
that the wheel was installed in. Prints a line for each thing that holds; fails at the first that does not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastsal
from fastsal import backends
from fastsal.operators import OPERATORS

CSRC = Path(__file__).parents[1] / "csrc"


def show(what: str) -> None:
    print(f"ok: {what}", flush=True)


def need(holds: bool, what: str) -> None:
    if not holds:
        raise SystemExit(f"FAILED: {what}")
    show(what)


def symbols(library: str) -> None:
    """`ldd -r` finds every symbol in torch's libraries but those that the interpreter itself has."""
    folder = str(Path(torch.__file__).parent / "lib")
    environment = {**os.environ, "LD_LIBRARY_PATH": folder}
    said = subprocess.run(["ldd", "-r", library], capture_output=True, text=True, check=True, env=environment)
    text = said.stdout + said.stderr
    need("not found" not in text, "ldd finds every library")
    undefined = re.findall(r"undefined symbol: (\S+)", text)
    foreign = [name for name in undefined if not name.startswith(("Py", "_Py"))]
    need(
        not foreign,
        f"ldd -r: every symbol resolves, {len(undefined)} of them in the interpreter {foreign or ''}",
    )


def registered(operators: list[str]) -> None:
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    for name in operators:
        need(has(f"fastsal_body::{name}", "CUDA"), f"fastsal_body::{name} has a kernel for CUDA")
        need(has(f"fastsal::{name}", "CUDA"), f"fastsal::{name} is bound for CUDA, to {backends.bodies('cuda')[name]}")


def fakes() -> None:
    """Fake cuda tensors go through the checks and the shape function of every operator, refused ones too."""
    with FakeTensorMode():
        cuda = torch.device("cuda")
        x, grad = torch.empty(5, 3, 8, 8, device=cuda), torch.empty(5, 3, 8, 8, device=cuda, dtype=torch.bfloat16)
        ids = torch.empty(4, dtype=torch.int64, device=cuda)
        eps, flag = torch.empty(1, device=cuda), torch.empty(4, dtype=torch.bool, device=cuda)
        logits, label = torch.empty(4, 10, device=cuda), torch.empty(5, dtype=torch.int64, device=cuda)
        seed, stop = torch.empty((), dtype=torch.int64, device=cuda), torch.empty(5, dtype=torch.int64, device=cuda)
        clean = torch.empty(5, 10, device=cuda)
        calls = {
            "random_start": [x, eps, seed, None, None, None, ids, 2.0],
            "pgd_step": [x, x, grad, eps, eps, None, None, ids, ids, 2.0, 1],
            "truncated_cross_entropy": [logits, label, ids, 0.7],
            "margin_loss": [logits, label, None, ids, True],
            "kl_divergence": [clean, logits, ids, True],
            "retire": [x, x[:4], flag, flag, ids, ids, x.clone(), stop, 3, False],
        }
        need(set(calls) == set(OPERATORS), "there is a fake call of every operator")
        for name, args in calls.items():
            expected = OPERATORS[name].plan(*args)
            outputs = getattr(torch.ops.fastsal, name)(*args)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            shapes = [(tuple(out.shape), out.dtype, out.device.type) for out in outputs]
            planned = [(tuple(out.shape), out.dtype, "cuda") for out in expected]
            need(shapes == planned, f"fastsal::{name} of fake cuda tensors gives {[s for s, _, _ in shapes]}")
            try:
                getattr(torch.ops.fastsal, name)(*[a.cpu() if a is args[1] else a for a in args])
            except (ValueError, RuntimeError) as error:
                need("device" in str(error), f"fastsal::{name} refuses operands of two devices")
            else:
                raise SystemExit(f"FAILED: fastsal::{name} takes operands of two devices")


def main() -> None:
    print(f"torch {torch.__version__} (CUDA {torch.version.cuda}), Python {sys.version.split()[0]}")
    need(torch.version.cuda is not None, "torch is a CUDA build")
    need(bool(sys.getdlopenflags() & os.RTLD_NOW), "the interpreter looks up every symbol of a module that it loads")
    need(backends.EXTENSION is not None, f"fastsal {fastsal.__version__} imports its extension")
    need(bool(backends.EXTENSION.cuda_targets()), f"its CUDA part is for {backends.EXTENSION.cuda_targets()}")
    symbols(backends.EXTENSION.__file__)
    source = (CSRC / "cuda/bindings.cpp").read_text()
    kernels = re.findall(r'm\.impl\("(\w+)"', source)
    registered(kernels)
    fakes()
    absent = sorted(set(OPERATORS) - set(kernels))
    print(f"operators without a CUDA kernel: {', '.join(absent) or 'none'}")
    raise SystemExit(1 if absent else 0)


if __name__ == "__main__":
    main()
