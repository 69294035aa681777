"""On a real GPU: `pytest -m gpu`. The cases and rules are those that the emulated and interpreted kernels have to meet.

Under compute-sanitizer: docs/kernels.md.
"""

from __future__ import annotations

import copy
import io
import itertools
import math
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from kernel_cases import answer, cases, disagreement, run_reference, wild_cases
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import fastsal
from fastsal import backends, doctor
from fastsal.operators import OPERATORS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
GPU = "cuda"
PARTS = 4  # of the cases of an operator: Triton compiles in each process of `pytest -n` anew
SIZE = os.environ.get("FASTSAL_GPU_CASES", "full")  # or "quick": the few that catch the most, for slow tools
BODIES = [body for body in backends.candidates("cuda") if not backends.missing(body)]
each_operator = pytest.mark.parametrize("name", OPERATORS)
each_body = pytest.mark.parametrize("body", BODIES)


@pytest.fixture
def no_waits() -> Iterator[None]:
    """Inside, every operation that makes the host wait for the device raises."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def on_gpu(args: tuple[Any, ...]) -> list[Any]:
    return [a.to(GPU) if isinstance(a, Tensor) else a for a in args]


@pytest.mark.parametrize("part", range(PARTS))
@each_body
@each_operator
def test_every_case_agrees_with_the_reference(name: str, body: str, part: int) -> None:
    compute = backends.body_of(name, body)
    problems = [
        problem
        for case in itertools.islice(cases(name, SIZE), part, None, PARTS)
        if (problem := disagreement(case, answer(case, compute, GPU), run_reference(case))) is not None
    ]
    assert problems == []


@pytest.mark.parametrize("body", [body for body in BODIES if body != "reference"])
@each_operator
def test_indices_and_labels_out_of_range_touch_nothing(name: str, body: str) -> None:
    compute = backends.body_of(name, body)
    for case in wild_cases(name):
        got = answer(case, compute, GPU)
        torch.cuda.synchronize()
        assert disagreement(case, got, run_reference(case)) is None


@each_operator
def test_an_operator_never_waits_and_runs_on_the_current_stream(name: str, no_waits: None) -> None:
    operator = getattr(torch.ops.fastsal, name).default
    for case in cases(name, "quick"):
        torch.cuda.set_sync_debug_mode("default")
        args, early = on_gpu(case.args), on_gpu(case.args)
        expected = operator(*early)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        torch.cuda.set_sync_debug_mode("error")
        with torch.cuda.stream(stream):
            torch.cuda._sleep(1_000_000)  # work on another stream would not wait for this
            got = operator(*args)
        torch.cuda.set_sync_debug_mode("default")
        stream.synchronize()
        for mine, theirs in zip(*(out if isinstance(out, tuple) else (out,) for out in (got, expected)), strict=True):
            real = ~(mine.isnan() | theirs.isnan()) if mine.is_floating_point() else torch.ones_like(mine).bool()
            padded = case.named.get("ids") is not None and name in ("random_start", "pgd_step")
            if padded and mine.shape[:1] == case["ids"].shape:
                inside = (case["ids"] >= 0).to(GPU).view(-1, *[1] * (mine.dim() - 1))
                real = real & inside
            assert torch.equal(mine[real], theirs[real])


def test_one_seed_gives_one_noise_on_every_device_and_under_every_cut() -> None:
    x, seed, low, high = torch.rand(40, 3, 33, 31), torch.tensor(7), torch.zeros(1), torch.ones(1)
    start, eps = torch.ops.fastsal.random_start.default, torch.tensor([0.1])
    whole = start(x, eps, seed, None, low, high, None, math.inf)
    parts = [
        start(*on_gpu((x[ids], eps, seed, ids, low, high, None)), math.inf).cpu() for ids in torch.arange(40).split(13)
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_a_device_that_is_not_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    x, one = torch.rand(5, 3, 8, 8, device="cuda:1"), torch.full((1,), 0.1, device="cuda:1")
    with torch.cuda.device(0):
        got, _ = torch.ops.fastsal.pgd_step.default(x, x, x - 0.5, one, one, None, None, None, None, math.inf)
    expected = torch.ops.fastsal.pgd_step.default(
        *(t.cpu() for t in (x, x, x - 0.5, one, one)), None, None, None, None, math.inf
    )[0]
    assert torch.equal(got.cpu(), expected)


def net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 32), nn.Tanh(), nn.Linear(32, 10)).double()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("attack", [fastsal.SENSE, fastsal.PGD, fastsal.APGD])
def test_passes_replayed_by_cuda_graphs_give_the_same_attack(attack: Any, precision: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(16 * 16, 10),
    ).to(GPU)  # fmt: skip
    with torch.no_grad():
        model[-1].weight.mul_(30)  # probabilities on both sides of the cut
    x = torch.rand(64, 3, 8, 8, device=GPU)
    y = model.eval()(x).argmax(1)
    for _ in range(3):  # recorded, replayed, and replayed with other weights
        found = []
        for on in (False, True):
            levers = fastsal.Levers(cuda_graphs=on, fold_batch_norm=True)
            found.append(attack(model, 0.05, fast=levers, precision=precision)(x, y, seed=1, return_info=True))
        (expected, _), (got, info) = found
        assert info.levers["cuda_graphs"] == "on" and info.stepped[0] > 0
        assert float((got != expected).float().mean()) <= 1e-3  # a library may take another algorithm inside a graph
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("attack", [fastsal.SENSE, fastsal.PGD])
def test_an_attack_gives_what_it_gives_on_a_cpu(attack: Any, norm: str) -> None:
    model = net()
    x, y = torch.rand(64, 3, 8, 8, dtype=torch.float64), torch.randint(10, (64,))
    eps = 0.1 if norm == "Linf" else 1.0
    expected, info = attack(model, eps=eps, norm=norm)(x, y, seed=1, return_info=True)
    on_device = copy.deepcopy(model).to(GPU)
    got, gpu_info = attack(on_device, eps=eps, norm=norm)(x.to(GPU), y.to(GPU), seed=1, return_info=True)
    torch.testing.assert_close(got.cpu(), expected, rtol=0, atol=1e-9)
    assert torch.equal(gpu_info.stop_step.cpu(), info.stop_step)


@pytest.mark.parametrize("attack", [fastsal.SENSE, fastsal.PGD])
def test_an_attack_waits_for_live_counts_alone(attack: Any) -> None:
    """Those come by events, which are no synchronisation of the device; every other wait raises here."""
    model = net().to(GPU)
    x, y = torch.rand(64, 3, 8, 8, dtype=torch.float64, device=GPU), torch.randint(10, (64,), device=GPU)
    call = attack(model, eps=0.1, check_inputs=False)
    expected = call(x, y, seed=1)  # the first one looks whether logits are probabilities
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = call(x, y, seed=1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)


def test_training_and_evaluation_on_the_device() -> None:
    """Three epochs on clouds that are easy to tell apart, and how many stay right in the worst case."""
    torch.manual_seed(0)
    y = torch.arange(512) % 4
    x = (
        0.25 + 0.5 * torch.eye(4)[y].repeat_interleave(9, 1).view(-1, 4, 3, 3) + 0.05 * torch.randn(512, 4, 3, 3)
    ).clamp(0, 1)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4)).to(GPU)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=64, shuffle=True)
    fastsal.train(model, loader, eps=0.02, epochs=3, progress=False)
    report = fastsal.evaluate(model, loader, eps=0.02, progress=False)
    assert all(parameter.is_cuda for parameter in model.parameters())
    assert report.natural_accuracy > 0.9


@pytest.mark.skipif(BODIES == ["reference"], reason="neither CUDA nor Triton bodies are there")
def test_a_step_of_sense_makes_three_launches() -> None:
    """Loss, retire, step: one kernel each, for images and logits of ordinary size."""
    x, y = torch.rand(64, 3, 32, 32, device=GPU), torch.randint(10, (64,), device=GPU)
    logits, one = torch.randn(64, 10, device=GPU), torch.full((1,), 0.1, device=GPU)
    result, stop = torch.zeros_like(x), torch.zeros_like(y)
    ops = torch.ops.fastsal

    def step() -> None:
        _, _, right, over = ops.truncated_cross_entropy(logits, y, None, 0.7)
        rows, ids, _ = ops.retire(x, x, right, over, None, None, result, stop, 1, False)
        ops.pgd_step(x, x, x, one, one, None, None, rows, ids, math.inf)

    step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as recorded:
        step()
        torch.cuda.synchronize()
    kernels = [event.name for event in recorded.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert len(kernels) <= 3, kernels


def test_doctor_finds_every_operator_in_order() -> None:
    out = io.StringIO()
    assert doctor.examine(out), out.getvalue()
