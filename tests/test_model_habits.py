"""Habits of models and callers that an attack could spoil: what it exchanges or freezes is theirs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import fastsal

N, CLASSES = 8, 5


def model(norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), norm(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, CLASSES))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(N, 3, 8, 8), torch.arange(N) % CLASSES


def test_threads_that_attack_one_model_take_turns(batch) -> None:
    inside, met = threading.Event(), threading.Event()

    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = model()

        def forward(self, x: Tensor) -> Tensor:
            if not inside.is_set():
                inside.set()
                assert not met.wait(0.5)  # another thread has come so far
            elif threading.current_thread().name == "second":
                met.set()
            return self.body(x)

    shared, results = Slow(), {}

    def attack() -> None:
        results[threading.current_thread().name] = fastsal.PGD(shared, steps=2)(*batch, seed=3)

    threads = [threading.Thread(target=attack, name=name) for name in ("first", "second")]
    threads[0].start()
    assert inside.wait(30)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert torch.equal(results["first"], results["second"]) and met.is_set()
    assert all(part.training for part in shared.modules())
    assert all(parameter.requires_grad for parameter in shared.parameters())


class Resizing(nn.Module):
    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.head, self.change = nn.Linear(192, CLASSES), change
        self.register_buffer("seen", torch.tensor([1.5, 2.5]))
        self.register_buffer("other", torch.tensor([7]))

    def forward(self, x: Tensor) -> Tensor:
        self.change(self.seen)
        return self.head(x.flatten(1))


def _grow(seen: Tensor) -> None:
    seen.data = torch.cat([seen, seen])


def _widen(seen: Tensor) -> None:
    seen.data = seen.double()


@pytest.mark.parametrize("change", [lambda b: b.resize_(3).fill_(7), lambda b: b.set_(torch.ones(4)), _grow, _widen])
@pytest.mark.parametrize("interrupted", [False, True])
def test_a_buffer_that_changes_its_size_comes_back(batch, change, interrupted) -> None:
    def once(seen: Tensor) -> None:
        change(seen)
        if interrupted:
            raise KeyboardInterrupt

    resizing = Resizing(once)
    seen = resizing.seen
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            fastsal.PGD(resizing, steps=2)(*batch)
    else:
        fastsal.PGD(resizing, steps=2)(*batch)
    assert resizing.seen is seen and seen.dtype == torch.float32 and seen.tolist() == [1.5, 2.5]
    assert resizing.other.tolist() == [7]


@pytest.mark.parametrize(
    "reparametrize", [weight_norm, spectral_norm, lambda part: prune.random_unstructured(part, "weight", 0.5)]
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_weight_that_a_hook_makes_keeps_its_graph(batch, reparametrize) -> None:
    x, y = batch
    own = model()
    reparametrize(own[4])
    out, weight = own(x), own[4].weight
    fastsal.PGD(own, steps=2)(x, y)
    assert own[4].weight is weight and weight.requires_grad
    (F.cross_entropy(out, y) + weight.pow(2).sum()).backward()


def test_cached_parametrizations_keep_their_gradient(batch) -> None:
    x, y = batch
    own = model()
    parametrizations.weight_norm(own[4])
    with parametrize.cached():
        F.cross_entropy(own(fastsal.PGD(own, steps=2)(x, y)), y).backward()
    assert own[4].parametrizations.weight.original0.grad.abs().sum() > 0


class Masked(nn.Parameter):
    pass


@pytest.mark.parametrize("kind", ["attribute", "subclass"])
def test_a_parameter_with_something_of_the_users_is_not_exchanged(batch, kind) -> None:
    own = model()
    if kind == "attribute":
        own[0].weight.mask = torch.ones(1)
    else:
        own[0].weight = Masked(own[0].weight.detach())
    seen = []
    own.register_forward_pre_hook(lambda part, args: seen.append(own[0].weight))
    weight = own[0].weight
    fastsal.PGD(own, steps=3)(*batch)
    own._forward_pre_hooks.clear()
    fastsal.PGD(own, steps=3)(*batch)
    assert seen and all(one is weight for one in seen)


def test_hooks_of_all_modules_see_what_the_model_computes(batch) -> None:
    own, same = model(), []

    def look(part: nn.Module, args: Any, output: Tensor) -> None:
        if isinstance(part, nn.BatchNorm2d):
            same.append(torch.equal(args[0], output))

    handle = register_module_forward_hook(look)
    try:
        _, info = fastsal.PGD(own, steps=3)(*batch, return_info=True)
    finally:
        handle.remove()
    assert same and not any(same) and info.levers["fold_batch_norm"].startswith("off")


def test_an_attack_inside_a_compiled_step_runs_as_it_is(batch) -> None:
    own = model().eval()
    attack = fastsal.PGD(own, steps=3)

    @torch.compile(backend="eager")
    def step(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(own(attack(x, y, seed=0)), y)

    expected = F.cross_entropy(own(attack(*batch, seed=0)), batch[1])
    torch.testing.assert_close(step(*batch), expected)
    assert not any("forward" in vars(part) for part in own.modules())


def test_a_loss_of_ones_own_works_on_labels_of_its_own(batch) -> None:
    x, y = batch

    def edits(logits: Tensor, labels: Tensor) -> Tensor:
        labels[labels == 4] = 0
        return F.cross_entropy(logits, labels, reduction="none")

    before, attack = y.clone(), fastsal.PGD(model(), loss=edits)
    attack(x, y)
    assert torch.equal(y, before)
    with torch.inference_mode():
        attack(x.clone(), y.clone())


def test_where_a_norm_goes_by_its_batch_the_batch_keeps_its_size(batch) -> None:
    own = model(lambda channels: nn.BatchNorm2d(channels, track_running_stats=False))
    attack, plain = (fastsal.SENSE(own, eps=0.1, c=0.2, fast=fast) for fast in (True, False))
    x_adv, info = attack(*batch, seed=0, return_info=True)
    assert info.levers["live_rows"].startswith("off: a batch norm")
    torch.testing.assert_close(x_adv, plain(*batch, seed=0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("tensors", [False, True])
def test_a_channel_may_be_pinned_to_a_number_that_fp32_does_not_have(batch, tensors) -> None:
    x, y = batch
    x[:, 0] = 0.1
    low, high = (torch.tensor([0.1, other, other], dtype=torch.float64) for other in (0.0, 1.0))
    if not tensors:
        x, low, high = torch.full_like(x, 0.1), 0.1, 0.1
    x_adv = fastsal.PGD(model(), clip_min=low, clip_max=high)(x, y)
    assert torch.equal(x_adv[:, 0], x[:, 0])


def test_evaluate_judges_in_the_precision_of_its_attacks(batch) -> None:
    own, inside = model(), []
    own.register_forward_pre_hook(lambda part, args: inside.append(torch.is_autocast_enabled("cpu")))
    with torch.autocast("cpu", torch.bfloat16):
        report = fastsal.evaluate(own, [batch], eps=np.float32(0.1), steps=2, margin_steps=2, progress=False)
    assert inside and not any(inside)
    assert all(isinstance(of["alpha"], float) for of in report.attacks.values())


def _making(own: nn.Module, args: Any) -> None:
    own.register_buffer("made", torch.zeros(len(args[0])))


@pytest.mark.parametrize("method", ["natural", "sense"])
def test_training_takes_buffers_that_come_or_grow(batch, method) -> None:
    own = model()
    own.register_forward_pre_hook(lambda part, args: _making(part, args) if part.training else None)
    fastsal.train(own, [batch, [b[:5] for b in batch]], epochs=1, method=method, progress=False)
    assert len(own.made) == 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x, y: fastsal.PGD(model(), loss="kl", targeted=True), "loss: expected one of the target labels"),
        (lambda x, y: fastsal.PGD(model(), c=0.3), "c: expected None with PGD"),
        (lambda x, y: fastsal.PGD(model())(x, y, generator=42), "generator: expected a torch.Generator, got int"),
        (lambda x, y: fastsal.PGD(model())(x.to_sparse(), y), "x: expected a dense tensor"),
        (lambda x, y: fastsal.PGD(nn.Sequential(nn.Flatten(), nn.LazyBatchNorm1d(affine=False)))(x, y), "got lazy"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(batch, make, message) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make(*batch)


def test_integers_of_numpy_are_integers(batch) -> None:
    attack = fastsal.PGD(model(), steps=np.int64(3))
    assert torch.equal(attack(*batch, seed=np.int64(7)), attack(*batch, seed=7))


def _nothing() -> Iterator[tuple[str, Callable[[], Any]]]:
    z, y, one = torch.zeros(4, CLASSES), torch.zeros(4, dtype=torch.int64), torch.ones(1)
    ops, functional = torch.ops.fastsal, fastsal.functional
    yield "target: expected a tensor, got None", lambda: functional.truncated_cross_entropy(z, None)
    yield "target: expected a tensor, got None", lambda: functional.margin_loss(z, None)
    yield "clean: expected a tensor of logits", lambda: functional.kl_divergence(None, z)
    yield "grad: expected a tensor, got None", lambda: ops.pgd_step(z, z, None, one, one, None, None, None, None, 2.0)
    yield "eps: expected a tensor, got None", lambda: ops.random_start(z, None, y[0], None, None, None, None, 2.0)


@pytest.mark.parametrize(("message", "call"), list(_nothing()))
def test_nothing_in_place_of_a_tensor_is_refused_by_name(message, call) -> None:
    with pytest.raises(TypeError, match=message):
        call()
