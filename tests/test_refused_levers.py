"""Models that do not take a lever, and models that cannot be attacked: what is done then, and what is said."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastsal
from fastsal.model_view import _check_model
from fastsal.view import viewed

N = 6


def images(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(N, 2, 6, 6, generator=generator, dtype=dtype), torch.arange(N) % 3


class Net(nn.Module):
    """conv-norm-relu-head; subclasses look at things on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)
        nn.init.uniform_(self.norm.running_mean, -0.3, 0.3)
        self.forwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        return self.head(F.relu(self.norm(self.conv(x))).mean((2, 3)))


# ---------------------------------------------------------------------------------- contiguous, and bf16


class Asserts(Net):
    def forward(self, x: Tensor) -> Tensor:
        if not x.is_contiguous():
            raise AssertionError("images in rows, please")  # spelled out: pytest would add to what an assert says
        return super().forward(x)


class Checks(Net):
    def forward(self, x: Tensor) -> Tensor:
        if not x.is_contiguous():
            raise ValueError("x must be contiguous")
        return super().forward(x)


@pytest.mark.parametrize("kind", [Asserts, Checks])
def test_a_model_that_asserts_contiguous_images_gets_them(kind: type[Net]) -> None:
    model, (x, y) = kind(), images()
    with pytest.warns(fastsal.FallbackWarning, match="its images stay contiguous instead of channels_last") as caught:
        found, info = fastsal.PGD(model, 0.1, steps=2)(x, y, seed=1, return_info=True)
    assert len([w for w in caught if w.category is fastsal.FallbackWarning]) == 1
    assert info.levers["channels_last"].startswith("off: the model does not take channels_last (")
    plain = fastsal.PGD(model, 0.1, steps=2, fast=False)(x, y, seed=1)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(fastsal.PGD(model, 0.1, steps=2)(x, y, seed=1), found)


def test_a_model_that_asserts_fp32_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fp32(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            assert x.dtype == torch.float32
            return super().forward(x)

    monkeypatch.setattr(fastsal.view, "bf16_pays", lambda device: (True, "here it pays"))
    model, x, y = Fp32(6, 3), torch.rand(N, 6), torch.arange(N) % 3
    with pytest.warns(fastsal.FallbackWarning, match=r"does not take bf16: .*: it is attacked in fp32"):
        _, info = fastsal.PGD(model, 0.1, steps=2)(x, y, return_info=True)
    assert info.levers["precision"].startswith("fp32: the model does not take bf16")
    with pytest.raises(AssertionError):
        fastsal.PGD(model, 0.1, steps=2, precision="bf16")(x, y)


@pytest.mark.parametrize(
    "error", [AssertionError, AssertionError("mine"), ValueError("not contiguous"), ValueError("m")]
)
def test_an_assertion_about_something_else_is_raised_and_nothing_is_remembered(error: Any) -> None:
    class Fails(Net):
        fails = True

        def forward(self, x: Tensor) -> Tensor:
            z = super().forward(x)
            if self.fails:
                raise error
            return z

    model, (x, y) = Fails(), images()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(error if isinstance(error, type) else type(error)):
            fastsal.PGD(model, 0.1, steps=2)(x, y)
        model.fails = False
        _, info = fastsal.PGD(model, 0.1, steps=2)(x, y, return_info=True)
    assert info.levers["channels_last"] == "on"


def test_an_assertion_after_the_first_step_is_the_models_own() -> None:
    class Later(Net):
        def forward(self, x: Tensor) -> Tensor:
            self.forwards += 1
            if self.forwards > 2:
                raise AssertionError
            return self.head(self.conv(x).mean((2, 3)))

    model, (x, y) = Later(), images()
    with pytest.raises(AssertionError):
        fastsal.PGD(model, 0.1, steps=4)(x, y)
    assert model.forwards == 3  # no second beginning


# ---------------------------------------------------------------------------------- another way, later


class Wanders(Net):
    """Takes another way at every third forward."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.other = way, nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        way = self.way if self.forwards % 3 == 0 else ""
        a = self.norm(self.conv(x)) if way == "the convolution once more" else None
        a = self.conv(x) if a is None else self.conv(x) + a
        if way == "no norm":
            b = a
        elif way == "another norm":
            b = self.other(a)
        elif way == "something in between":
            b = self.norm(F.relu(a))
        elif way == "in place":
            b = self.norm(a.mul_(2))
        elif way == "the norm twice":
            b = self.norm(self.norm(a))
        elif way == "by its batch":
            self.norm.training = True
            b = self.norm(a)
            self.norm.training = False
        else:
            b = self.norm(a)
        return self.head(F.relu(b).mean((2, 3)))


WAYS = ["no norm", "another norm", "something in between", "in place", "the norm twice", "by its batch"]
WAYS += ["the convolution once more"]


@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_takes_another_way_later_is_not_folded(way: str) -> None:
    model, (x, y) = Wanders(way).double(), images(torch.float64)
    how = {"eps": 0.1, "steps": 5, "c": None, "norm": "L2", "seed": 3}
    expected = fastsal.perturb(model, x, y, fast=False, **how)
    model.forwards = 0
    with pytest.warns(fastsal.FallbackWarning, match="another way at a later forward: its batch norms are not folded"):
        _, info = fastsal.perturb(model, x, y, return_info=True, **how)
    assert info.levers["fold_batch_norm"] == "off: the model takes another way at a later forward"
    model.forwards = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fastsal.perturb(model, x, y, **how)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    assert "forward" not in model.norm.__dict__ and "forward" not in model.conv.__dict__


def test_a_model_that_keeps_its_way_stays_folded() -> None:
    model, (x, y) = Net(), images()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, info = fastsal.PGD(model, 0.1, steps=5)(x, y, return_info=True)
    assert info.levers["fold_batch_norm"] == "on: 1 folded" and model.forwards == 5


# ---------------------------------------------------------------------------------- cuDNN


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layers, self.head = kind(4, 5, batch_first=True), nn.Linear(5, 3)
        self.seen: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        z = self.layers(x)[0]
        self.seen.append(torch.backends.cudnn.enabled)
        return self.head(z[:, -1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_run_without_cudnn_and_that_is_said(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, usual = [], kind.forward

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        seen.append(torch.backends.cudnn.enabled)
        return usual(self, *args, **kwargs)

    monkeypatch.setattr(kind, "forward", forward)
    model, x, y = Recurrent(kind), torch.rand(N, 7, 4), torch.arange(N) % 3
    expected, info = fastsal.SENSE(model, 0.1, steps=3, c=0.1)(x, y, seed=1, return_info=True)
    assert "cudnn" not in info.levers and all(seen)
    monkeypatch.setattr(fastsal.view, "_runs_on_cudnn", lambda x: True)
    seen.clear()
    found, info = fastsal.SENSE(model, 0.1, steps=3, c=0.1)(x, y, seed=1, return_info=True)
    assert info.levers["cudnn"] == f"off for {kind.__name__}: it has no backward in eval mode"
    assert seen and not any(seen)
    assert all(model.seen) and torch.backends.cudnn.enabled  # for those layers alone
    assert torch.equal(found, expected) and "forward" not in model.layers.__dict__


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_attacked_on_a_gpu(kind: Any) -> None:
    model, x, y = Recurrent(kind).cuda(), torch.rand(N, 7, 4, device="cuda"), torch.arange(N, device="cuda") % 3
    found, info = fastsal.PGD(model, 0.1, steps=3, precision="fp32")(x, y, seed=1, return_info=True)
    assert "cudnn" in info.levers and all(model.seen)
    expected = fastsal.PGD(model.cpu(), 0.1, steps=3, precision="fp32")(x.cpu(), y.cpu(), seed=1)
    assert ((found.cpu() - expected).abs() > 1e-5).float().mean() <= 0.02


# ---------------------------------------------------------------------------------- one clear error each


def complains(message: str, attack: fastsal.attack.Attack, x: Tensor, y: Tensor) -> None:
    with pytest.raises(ValueError, match=message):
        attack(x, y)


def test_values_are_needed() -> None:
    x, y = torch.rand(N, 6, device="meta"), torch.zeros(N, dtype=torch.int64, device="meta")
    message = "x: expected a tensor with values, got one on device meta"
    for model in (nn.Linear(6, 3), nn.Linear(6, 3, device="meta")):
        complains(message, fastsal.SENSE(model), x, y)


@pytest.mark.parametrize("fast", [True, False])
def test_logits_without_a_graph(fast: bool) -> None:
    class NoGrad(nn.Linear):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    class Detached(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.detach())

    class Inference(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            with torch.inference_mode():
                return super().forward(x)

    class Unfreezes(Detached):
        def forward(self, x: Tensor) -> Tensor:
            self.weight.requires_grad_(True)
            return super().forward(x)

    x, y = torch.rand(N, 6), torch.arange(N) % 3
    for kind in (NoGrad, Detached, Inference):
        complains(
            "model: expected logits that depend on x, got logits without a graph",
            fastsal.PGD(kind(6, 3), fast=fast),
            x,
            y,
        )
    message = "model: expected logits that depend on x, got logits that depend on something else"
    complains(message, fastsal.PGD(Unfreezes(6, 3), fast=fast), x, y)


def test_a_loss_that_does_not_depend_on_the_logits() -> None:
    model, x, y = nn.Linear(6, 3), torch.rand(N, 6), torch.arange(N) % 3
    weight = torch.ones((), requires_grad=True)
    message = "loss: expected losses that depend on the logits, got losses without a graph"
    complains(message, fastsal.PGD(model, loss=lambda z, y: torch.ones(len(z))), x, y)
    message = "loss: expected losses that depend on the logits, got others"
    complains(message, fastsal.PGD(model, loss=lambda z, y: weight * torch.ones(len(z))), x, y)


class On:
    """A parameter, as far as its place and kind go."""

    def __init__(self, device: str) -> None:
        self.device, self.dtype = torch.device(device), torch.float32

    def is_inference(self) -> bool:
        return False

    def is_floating_point(self) -> bool:
        return True


def test_parameters_on_two_devices() -> None:
    model, x = nn.Linear(6, 3), torch.rand(N, 6)
    assert _check_model(model, [On("cpu"), On("cpu")], x) is None
    with pytest.raises(
        ValueError, match=r"model: expected parameters on one device, that of x \(cpu\), got cpu, cuda:1"
    ):
        _check_model(model, [On("cpu"), On("cuda:1")], x)


def test_a_parameter_that_a_forward_writes_to_stays_written() -> None:
    """Documented, and no more: copies of all weights would cost too much."""

    class Counts(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            self.bias.data.add_(1)
            return super().forward(x)

    model, x, y = Counts(6, 3), torch.rand(N, 6), torch.arange(N) % 3
    before = model.bias.detach().clone()
    fastsal.PGD(model, 0.1, steps=3, precision="fp32")(x, y)
    assert torch.equal(model.bias, before + 3)
    assert "not put back" in (fastsal.SENSE.__doc__ or "")


def test_seconds_tell_the_model_from_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    model, x, y = nn.Linear(6, 3), torch.rand(N, 6), torch.arange(N) % 3

    def seconds() -> dict[str, float]:
        _, info = fastsal.PGD(model, 0.1, steps=4)(x, y, return_info=True)
        assert info.seconds.keys() == {"all", "model", "kernels"}
        assert min(info.seconds.values()) > 0
        assert info.seconds["model"] + info.seconds["kernels"] <= info.seconds["all"]
        return info.seconds

    handle = model.register_forward_hook(lambda *_: time.sleep(0.05))
    assert seconds()["model"] >= 0.2
    handle.remove()
    step = fastsal.threat.Threat.step

    def slow(*args: Any) -> Any:
        time.sleep(0.05)
        return step(*args)

    monkeypatch.setattr(fastsal.threat.Threat, "step", slow)
    assert seconds()["kernels"] >= 0.2


def test_the_view_gives_the_forwards_back_when_a_way_was_left() -> None:
    model, (x, _) = Wanders("no norm").eval(), images()
    with pytest.raises(fastsal.refused.Refused), viewed(model, x, fastsal.Levers(), "fp32") as view:
        for _ in range(3):
            view.forward(x, gradient=True)
    assert "forward" not in model.conv.__dict__ and "forward" not in model.norm.__dict__
