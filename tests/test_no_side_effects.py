"""An attack leaves the model, the caller's tensors and the process as it found them, also when it fails."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastsal

N = 10


class Boom(Exception):
    pass


class CountBackward(torch.autograd.Function):
    """The identity; its backward counts itself and fails when told to."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, model: Restless) -> Tensor:
        ctx.model = model
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        tally = ctx.model.tally
        tally.backwards += 1
        if tally.backwards - 1 == ctx.model.fail_in_backward_at:
            raise Boom
        return grad, None


class Restless(nn.Module):
    """A model with every habit that can leave a trace.

    Batch norm, dropout, noise of its own, and buffers changed in forward: in place, replaced by a new tensor,
    not persistent, and on demand through .data, which leaves no trace in the version counter.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.frozen_norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(6 * 25, 4)
        self.unused = nn.Linear(3, 3)
        self.alias = self.head  # a shared module
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("running", torch.ones(3))
        self.register_buffer("hidden", torch.ones(3))
        self.register_buffer("replaced", torch.ones(3))
        self.register_buffer("passing", torch.zeros(2), persistent=False)
        self.register_buffer("absent", None)
        self.fail_at: int | None = None
        self.fail_in_backward_at: int | None = None
        self.draws = False
        self.writes_through_data = False
        self.writes_gradients = False
        self.tally = Tally()

    def forward(self, x: Tensor) -> Tensor:
        k = self.tally.forwards
        self.tally.forwards += 1
        self.tally.training |= any(m.training for m in self.modules())
        self.tally.trainable |= any(p.requires_grad for p in self.parameters())
        self.calls += 1
        self.running.mul_(0.9)
        if self.writes_through_data:
            self.hidden.data.mul_(0.9)
        if self.writes_gradients:
            self.unused.weight.grad = torch.ones(3, 3)
            self.head.bias.grad = None
        self.replaced = self.replaced * 0.5
        self.passing.add_(1)
        if self.draws:
            x = x + 1e-6 * torch.rand_like(x)
        z = self.drop(self.frozen_norm(F.relu(self.norm(self.conv(x)))))
        if k == self.fail_at:
            raise Boom
        return self.head(CountBackward.apply(z, self).flatten(1))


class Tally:
    """Shared by every copy of the model."""

    def __init__(self) -> None:
        self.forwards = self.backwards = 0
        self.training = self.trainable = False

    def __deepcopy__(self, memo: dict) -> Tally:
        return self


def state(model: nn.Module) -> dict[str, Any]:
    """Everything of the model that somebody could notice. Objects are kept alive, so `is` means something."""
    return {
        "modules": dict(model.named_modules(remove_duplicate=False)),
        "training": {n: m.training for n, m in model.named_modules()},
        "attributes": {n: sorted(m.__dict__) for n, m in model.named_modules()},
        "hooks": {n: len(m._forward_hooks) + len(m._forward_pre_hooks) for n, m in model.named_modules()},
        "parameters": dict(model.named_parameters()),
        "parameter values": {n: p.detach().clone() for n, p in model.named_parameters()},
        "requires_grad": {n: p.requires_grad for n, p in model.named_parameters()},
        "grads": {n: p.grad for n, p in model.named_parameters()},
        "grad values": {n: copy.deepcopy(p.grad) for n, p in model.named_parameters()},
        "buffers": dict(model.named_buffers()),
        "buffer values": {n: b.clone() for n, b in model.named_buffers()},
        "state_dict": list(model.state_dict()),
    }


def process() -> dict[str, Any]:
    return {
        "rng": torch.get_rng_state().tolist(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "mkldnn": torch.backends.mkldnn.enabled,
        "cudnn": (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark),
        "anomaly": torch.is_anomaly_enabled(),
    }


def assert_same(model: nn.Module, before: dict[str, Any]) -> None:
    after = state(model)
    for what in ("training", "attributes", "hooks", "requires_grad", "state_dict"):
        assert after[what] == before[what], what
    for what in ("modules", "parameters", "buffers", "grads"):
        assert after[what].keys() == before[what].keys(), what
        for name, thing in before[what].items():
            assert after[what][name] is thing, f"{what}: {name} is another object"
    for what in ("parameter values", "grad values", "buffer values"):
        for name, value in before[what].items():
            now = after[what][name]
            assert (now is None) if value is None else torch.equal(now, value), f"{what}: {name}"


def mixed(model: nn.Module) -> None:
    """Flags and gradients as no single switch could set them."""
    model.train()
    model.frozen_norm.eval()
    model.drop.eval()
    model.conv.weight.requires_grad_(False)
    model.head.bias.requires_grad_(False)
    model.conv.bias.grad = torch.randn_like(model.conv.bias)
    model.head.bias.grad = torch.randn_like(model.head.bias)
    model.norm.weight.grad = torch.full_like(model.norm.weight, float("nan")).nan_to_num(3.0)


def all_train(model: nn.Module) -> None:
    model.train()


def all_eval(model: nn.Module) -> None:
    model.eval()


def frozen(model: nn.Module) -> None:
    model.eval().requires_grad_(False)


def root_eval_children_train(model: nn.Module) -> None:
    model.train()
    model.training = False


SETTINGS = [mixed, all_train, all_eval, frozen, root_eval_children_train]

ATTACKS: dict[str, Callable[[nn.Module], Any]] = {
    "SENSE": lambda m: fastsal.SENSE(m, 0.1, steps=3, c=0.01),
    "SENSE-L2-clean": lambda m: fastsal.SENSE(m, 0.1, steps=3, c=0.01, norm="L2", decide_at="clean"),
    "SENSE-warm-up": lambda m: fastsal.SENSE(m, 0.1, steps=3, c=0.01, truncate=False),
    "PGD": lambda m: fastsal.PGD(m, 0.1, steps=3),
    "PGD-no-start": lambda m: fastsal.PGD(m, 0.1, steps=3, random_start=False, loss="margin"),
}

each_attack = pytest.mark.parametrize("make", ATTACKS.values(), ids=ATTACKS.keys())
each_setting = pytest.mark.parametrize("setting", SETTINGS, ids=lambda f: f.__name__)


@pytest.fixture
def case() -> tuple[Restless, Tensor, Tensor]:
    model = Restless()
    x = torch.rand(N, 2, 5, 5)
    labels = copy.deepcopy(model).eval()(x).argmax(1)  # right, so that SENSE has rows to work on
    model.tally.__init__()
    return model, x, labels


@contextmanager
def left_alone(case: tuple[nn.Module, Tensor, Tensor]) -> Iterator[None]:
    """What happens inside changes neither the model nor x, y and the process."""
    model, x, y = case
    model_was, process_was = state(model), process()
    x_was, y_was, flag, version = x.detach().clone(), y.clone(), x.requires_grad, x._version
    yield
    assert_same(model, model_was)
    assert process() == process_was
    assert torch.equal(x, x_was) and torch.equal(y, y_was)
    assert x.requires_grad == flag and x.grad is None
    assert x._version == version, "x was written to"


# ------------------------------------------------------------------ on success


@each_attack
@each_setting
def test_a_successful_attack_leaves_nothing_behind(case, make, setting) -> None:
    model, x, y = case
    setting(model)
    attack = make(model)
    with left_alone(case):
        attack(x, y, seed=1)
        tally = model.tally
    assert tally.forwards >= 3 and not tally.training and not tally.trainable, "eval mode, frozen"


@each_attack
def test_own_predictions_leave_nothing_behind(case, make) -> None:
    model, x, _ = case
    mixed(model)
    with left_alone(case):
        make(model)(x, seed=1)


@each_attack
def test_a_buffer_written_through_data_comes_back(case, make) -> None:
    """Version counters do not see such a write."""
    model, x, y = case
    model.writes_through_data = True
    with left_alone(case):
        make(model)(x, y, seed=1)


@each_attack
def test_gradients_that_the_model_writes_itself_come_back(case, make) -> None:
    model, x, y = case
    mixed(model)
    model.writes_gradients = True
    with left_alone(case):
        make(model)(x, y, seed=1)


def test_making_an_attack_touches_nothing(case) -> None:
    model, _, _ = case
    mixed(model)
    with left_alone(case):
        for make in ATTACKS.values():
            make(model)
        assert model.tally.forwards == 0


@each_attack
def test_a_model_that_draws_random_numbers_leaves_the_rng_as_it_was(case, make) -> None:
    model, x, y = case
    model.draws = True
    with left_alone(case):
        make(model)(x, y, seed=1)


@pytest.mark.parametrize("name", [n for n in ATTACKS if "no-start" not in n])
def test_and_exactly_one_integer_is_gone_when_no_seed_was_given(case, name) -> None:
    model, x, y = case
    model.draws = True
    torch.manual_seed(8)
    torch.empty((), dtype=torch.int64).random_()
    expected = torch.get_rng_state()
    torch.manual_seed(8)
    ATTACKS[name](model)(x, y)
    assert torch.equal(torch.get_rng_state(), expected)


@pytest.mark.parametrize("caller", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@each_attack
def test_under_any_grad_mode_nothing_is_left_behind(case, make, caller) -> None:
    model, x, y = case
    mixed(model)
    with left_alone(case), caller():
        inside = process()
        make(model)(x, y, seed=1)
        assert process() == inside


@each_attack
def test_under_autocast_nothing_is_left_behind(case, make) -> None:
    model, x, y = case
    with left_alone(case), torch.autocast("cpu", torch.bfloat16):
        make(model)(x, y, seed=1)
        assert torch.is_autocast_enabled("cpu")


@each_attack
def test_an_attack_inside_a_training_step_does_not_disturb_it(case, make) -> None:
    """The graph of a loss made before the attack gives the same gradients after it."""
    model, x, y = case
    model.train()
    model.drop.eval()

    def gradients(attacked: bool) -> list[Tensor | None]:
        model.zero_grad(set_to_none=True)
        twin = copy.deepcopy(model)
        loss = F.cross_entropy(twin(x), y)
        if attacked:
            make(twin)(x, y, seed=1)
        loss.backward()
        return [p.grad for p in twin.parameters()]

    for a, b in zip(gradients(False), gradients(True), strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@each_attack
def test_gradients_of_the_weights_flow_through_the_result_afterwards(case, make) -> None:
    """The outer step: the attack must not leave the parameters frozen or the result attached."""
    model, x, y = case
    model.train()
    x_adv = make(model)(x, y, seed=1)
    F.cross_entropy(model(x_adv), y).backward()
    for name, p in model.named_parameters():
        assert (p.grad is None) == name.startswith("unused."), name


@each_attack
def test_an_input_that_requires_grad_gets_none(case, make) -> None:
    model, x, y = case
    x.requires_grad_()
    with left_alone(case):
        make(model)(x, y, seed=1)


@each_attack
def test_hooks_and_parametrizations_survive(case, make) -> None:
    model, x, y = case
    model.conv.register_forward_hook(lambda module, args, out: out * 1.0)
    model.norm.register_full_backward_hook(lambda module, grad_in, grad_out: None)
    nn.utils.parametrizations.spectral_norm(model.head)
    model.train()
    with left_alone(case):
        make(model)(x, y, seed=1)


@each_attack
def test_an_overridden_train_is_not_called(case, make) -> None:
    """Many models override train() to keep layers frozen; calling it would switch the user's code on."""
    model, x, y = case
    mixed(model)
    calls: list[bool] = []

    class Stubborn(nn.Sequential):
        def train(self, mode: bool = True) -> Stubborn:
            calls.append(mode)
            return super().train(mode)

    outer = Stubborn(model)
    with left_alone((outer, x, y)):
        make(outer)(x, y, seed=1)
    assert not calls


@each_attack
def test_a_wrapper_is_left_as_it_was(case, make) -> None:
    model, x, y = case
    mixed(model)
    wrapped = nn.DataParallel(model)
    mixed(wrapped.module)
    before = state(wrapped)
    make(wrapped)(x, y, seed=1)
    assert_same(wrapped, before)


def test_a_generator_is_advanced_and_the_global_rng_is_not(case) -> None:
    model, x, y = case
    with left_alone(case):
        g = torch.Generator().manual_seed(1)
        was = g.get_state()
        fastsal.SENSE(model, 0.1, steps=2)(x, y, generator=g)
        assert not torch.equal(g.get_state(), was)


# ------------------------------------------------------------------ on failure


@each_attack
@each_setting
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_forward_that_raises_leaves_nothing_behind(case, make, setting, at) -> None:
    model, x, y = case
    setting(model)
    model.fail_at, model.draws = at, True
    with left_alone(case):
        with pytest.raises(Boom):
            make(model)(x, y, seed=1)
        assert model.tally.forwards == at + 1


@each_attack
@each_setting
@pytest.mark.parametrize("at", [0, 1])
def test_a_backward_that_raises_leaves_nothing_behind(case, make, setting, at) -> None:
    model, x, y = case
    setting(model)
    model.fail_in_backward_at, model.draws = at, True
    with left_alone(case), pytest.raises(Boom):
        make(model)(x, y, seed=1)


@each_attack
def test_own_predictions_that_raise_leave_nothing_behind(case, make) -> None:
    model, x, _ = case
    mixed(model)
    model.fail_at = 0
    with left_alone(case), pytest.raises(Boom):
        make(model)(x, seed=1)


@each_attack
def test_an_interrupt_leaves_nothing_behind(case, make) -> None:
    """Ctrl-C is a BaseException and comes at any time."""
    model, x, y = case
    mixed(model)
    model.norm.register_forward_hook(interrupt)
    with left_alone(case), pytest.raises(KeyboardInterrupt):
        make(model)(x, y, seed=1)


def interrupt(module: nn.Module, args: Any, out: Any) -> None:
    raise KeyboardInterrupt


@each_attack
def test_a_refused_input_leaves_nothing_behind(case, make) -> None:
    model, x, y = case
    mixed(model)
    attack = make(model)
    with left_alone(case):
        for bad_x, bad_y in ((x + 9, y), (x, y - 9), (x.half(), y), (x, y.float()), (x.double(), y), (x, y[:3])):
            with pytest.raises((ValueError, TypeError)):
                attack(bad_x, bad_y, seed=1)


@each_attack
def test_the_attack_works_again_after_a_failure(case, make) -> None:
    model, x, y = case
    attack = make(model)
    expected = attack(x, y, seed=1)
    model.tally.forwards = 0
    model.fail_at = 1
    with pytest.raises(Boom):
        attack(x, y, seed=1)
    model.fail_at = None
    assert torch.equal(attack(x, y, seed=1), expected)


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_a_sparse_buffer_comes_back(layout: torch.layout) -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)
            self.register_buffer("edges", torch.eye(3).to_sparse(layout=layout))

        def forward(self, x: Tensor) -> Tensor:
            self.edges.values().mul_(2) if layout == torch.sparse_csr else self.edges._values().mul_(2)
            return self.head(x)

    net = Graph()
    fastsal.PGD(net, 0.1, steps=2)(torch.rand(5, 4), torch.arange(5) % 3)
    assert torch.equal(net.edges.to_dense(), torch.eye(3))
