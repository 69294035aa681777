"""Attacks one after the other leave neither memory nor hooks; ``python -m benchmarks.leaks`` makes 10,000."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("tested without the repository: there is no benchmarks/ beside tests/", allow_module_level=True)
sys.path.insert(0, str(ROOT))

from benchmarks.leaks import Net, hooks  # noqa: E402

# In a process of its own: what other tests have left, or leave while this one runs, is not what is asked.
MEASURED = """
import json, sys
import torch
import fastsal
from benchmarks.leaks import grown, leaks

torch.set_num_threads(1)
torch.manual_seed(0)  # the weights decide how many sizes of batches there are, and fastsal remembers kinds of calls
kind, left, usual = sys.argv[1], [], fastsal.perturb

def leaky(model, *args, **how):
    if kind == "tensor":
        left.append(torch.zeros(3))
    elif kind == "module":
        left.append(torch.nn.Identity())
    elif kind == "forward":
        model.drop.forward = model.drop.forward
        left.append(model)
    return usual(model, *args, **how)

if kind != "nothing":
    fastsal.perturb = leaky
before, after = grown(int(sys.argv[2]), warm=int(sys.argv[3]))
print(json.dumps([leaks(before, after), after["objects"] - before["objects"]]))
"""


def measured(kind: str, count: int, warm: int) -> tuple[list[str], int]:
    """What `count` attacks that leave something of this kind have left: what is said of it, and objects."""
    command = [sys.executable, "-c", MEASURED, kind, str(count), str(warm)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    said, objects = json.loads(ran.stdout.splitlines()[-1])
    return said, objects


def test_two_hundred_attacks_leave_nothing() -> None:
    said, objects = measured("nothing", 210, 70)
    assert said == []
    assert objects < 210  # not one object an attack


@pytest.mark.parametrize("kind", ["tensor", "forward", "module"])
def test_what_is_left_is_noticed(kind: str) -> None:
    """An attack that leaves one thing behind each time."""
    said, _ = measured(kind, 20, 20)
    assert {"tensor": "tensors", "module": "modules", "forward": "hooks"}[kind] in " ".join(said)


def test_hooks_are_counted() -> None:
    net = Net()
    assert sum(map(hooks, net.modules())) == 0
    net.conv.register_forward_hook(lambda *_: None)
    net.head.register_full_backward_pre_hook(lambda *_: None)
    net.norm.forward = net.norm.forward
    assert sum(map(hooks, net.modules())) == 3
