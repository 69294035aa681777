"""Attacks one after the other leave neither memory nor hooks; ``python -m benchmarks.leaks`` makes 10,000."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("tested without the repository: there is no benchmarks/ beside tests/", allow_module_level=True)
sys.path.insert(0, str(ROOT))

import fastsal  # noqa: E402
from benchmarks.leaks import Net, grown, hooks, leaks  # noqa: E402


def test_two_hundred_attacks_leave_nothing(one_thread: None) -> None:
    before, after = grown(210, warm=70)
    assert leaks(before, after) == []
    assert after["objects"] - before["objects"] < 210  # not one object an attack


@pytest.mark.parametrize("kind", ["tensor", "forward", "module"])
def test_what_is_left_is_noticed(kind: str, one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attack that leaves one thing behind each time."""
    left: list[object] = []
    usual = fastsal.perturb

    def leaky(model: Net, *args: object, **how: object) -> object:
        if kind == "tensor":
            left.append(torch.zeros(3))
        elif kind == "module":
            left.append(torch.nn.Identity())
        else:
            model.drop.forward = model.drop.forward
            left.append(model)
        return usual(model, *args, **how)

    monkeypatch.setattr(fastsal, "perturb", leaky)
    text = " ".join(leaks(*grown(20, warm=20)))
    assert {"tensor": "tensors", "module": "modules", "forward": "hooks"}[kind] in text


def test_hooks_are_counted() -> None:
    net = Net()
    assert sum(map(hooks, net.modules())) == 0
    net.conv.register_forward_hook(lambda *_: None)
    net.head.register_full_backward_pre_hook(lambda *_: None)
    net.norm.forward = net.norm.forward
    assert sum(map(hooks, net.modules())) == 3
