"""CUDA graphs without CUDA: a tape takes down the operations of a pass with their tensors, and replays them.

Like a graph it knows addresses and no Python, and what it has recorded has no values until it is replayed: all that a
recording has made is NaN until then. What it cannot show is what CUDA itself refuses to record; `pytest -m gpu` does.
"""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastsal
from fastsal import graphs

SAMPLES, EPS = 32, 0.02


class Taking(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.taken: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.taken.append((func, args, kwargs or {}, result))
        return result


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class Tape:
    """A :class:`graphs.Recorder` for the CPU."""

    def __init__(self, device: torch.device) -> None:
        self.recordings = 0

    def warm_up(self, work: Callable[[], Any]) -> None:
        work()

    def record(self, work: Callable[[], Tensor]) -> tuple[graphs.Replay, Tensor]:
        self.recordings += 1
        with Taking() as mode:
            result = work()
        calls = []
        for func, args, kwargs, results in mode.taken:
            given = {storage(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
            leaves = tree_leaves(results)
            made = [isinstance(t, Tensor) and storage(t) not in given for t in leaves]
            fresh = [t.data for t, new in zip(leaves, made, strict=True) if new]
            calls.append((func, args, kwargs, fresh, made))
        for *_, fresh, _ in calls:
            for tensor in fresh:
                if tensor.is_floating_point():
                    tensor.fill_(float("nan"))

        def replay() -> None:
            with torch.no_grad():
                for func, args, kwargs, fresh, made in calls:
                    again = [t for t, new in zip(tree_leaves(func(*args, **kwargs)), made, strict=True) if new]
                    for tensor, value in zip(fresh, again, strict=True):
                        tensor.copy_(value)

        return replay, result

    def share_of_memory(self) -> float:
        return 0.1 * self.recordings


@pytest.fixture(autouse=True)
def tape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(graphs.RECORDERS, "cpu", Tape)


class Net(nn.Module):
    """With a batch norm to fold, and an account of the batches that its Python code has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)
        )
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return self.layers(x)


@pytest.fixture
def case() -> Iterator[tuple[Net, Tensor, Tensor]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net()
        with torch.no_grad():
            net.layers[4].weight.mul_(8)  # probabilities on both sides of the cut
        x = torch.rand(SAMPLES, 3, 8, 8)
        with torch.no_grad():
            for _ in range(3):
                net(x)
            y = net.eval()(x).argmax(1)
        net.sizes.clear()
        yield net, x, y


def levers(on: bool | str, **how: Any) -> fastsal.Levers:
    return fastsal.Levers(**{"live_rows": "buckets", "fold_batch_norm": True, **how}, cuda_graphs=on)


def both(
    net: Net, x: Tensor, y: Tensor, switches: dict[str, Any] | None = None, **how: Any
) -> fastsal.attack.AttackInfo:
    """The attack as it is and by graphs, bit for bit the same."""
    found = []
    for on in (False, True):
        attack = fastsal.attack.Attack(net, fast=levers(on, **switches or {}), **{"eps": EPS, "steps": 6, **how})
        found.append(attack(x, y, seed=1, return_info=True))
    (expected, plain), (got, info) = found
    assert torch.equal(got, expected) and torch.equal(info.stop_step, plain.stop_step)
    assert plain.levers["cuda_graphs"] == "off"
    return info


ATTACKS: dict[str, dict[str, Any]] = {
    "SENSE": {"c": 0.2},
    "SENSE, decided at x": {"c": 0.2, "decide_at": "clean"},
    "SENSE, bf16": {"c": 0.2, "precision": "bf16"},
    "SENSE-TRADES": {"c": 0.2, "loss": "kl"},
    "PGD": {"c": None},
    "PGD, L1": {"c": None, "norm": "L1"},
    "PGD, own loss": {"c": None, "loss": lambda z, y: -z.gather(1, y[:, None])[:, 0]},
    "PGD, momentum": {"c": None, "momentum": 1.0},
    "PGD, normalised": {"c": None, "normalize": ([0.5, 0.4, 0.3], [0.2] * 3)},
    "PGD, own predictions": {"c": None, "y": None},
    "FAT": {"c": None, "tau": 1},
    "APGD": {"c": None, "step_rule": "apgd"},
    "APGD, back to its first point": {
        **{"c": None, "step_rule": "apgd", "rho": 1.0, "eps": 0.3},
        "loss": lambda z, y: (30 * z).sin().sum(1),  # so rough that the first point is the best of some rows
    },
}


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("name", ATTACKS)
def test_replayed_passes_give_the_same_attack(name: str, fold: bool, case) -> None:
    net, x, y = case
    how = {"precision": "fp32", **ATTACKS[name]}
    y = how.pop("y", y)
    for _ in range(2):  # the second time with recordings that are there already
        info = both(net, x, y, {"fold_batch_norm": fold}, **how)
        assert info.levers["cuda_graphs"] == "on"
        assert info.levers["fold_batch_norm"].startswith("on: 1") == fold


def test_a_size_is_recorded_once_and_then_no_python_of_the_model_runs(case) -> None:
    net, x, y = case
    attack = fastsal.SENSE(net, EPS, steps=6, c=0.2, fast=levers(True, fold_batch_norm=False), precision="fp32")
    attack(x, y, seed=1)
    *recorded, final = sorted(set(net.sizes), reverse=True)
    assert len(recorded) >= 3 and recorded[0] == SAMPLES, "a case in which the batch shrinks, in the last forward too"
    # twice to compare, once to warm up, once to record; the last forward has no backward, and its size is new
    assert net.sizes == [size for size in recorded for _ in range(4)] + [final]
    net.sizes.clear()
    attack(x, y, seed=1)
    assert net.sizes == [final]
    assert len(graphs.graphs_of(net, x.device)) == len(recorded)


def test_the_weights_of_the_moment_are_attacked(case) -> None:
    """In training they change in place between the attacks: folded, in bf16, or as they are."""
    net, x, y = case
    for how in ({"fold_batch_norm": True}, {"fold_batch_norm": False}):
        both(net, x, y, how, c=None)
        both(net, x, y, how, c=None, precision="bf16")
        recorded = len(graphs.graphs_of(net, x.device))
        for _ in range(3):
            with torch.no_grad():
                for tensor in (*net.parameters(), *net.buffers()):
                    if tensor.is_floating_point():
                        tensor.mul_(1.25)
            both(net, x, y, how, c=None)
            both(net, x, y, how, c=None, precision="bf16")
        assert len(graphs.graphs_of(net, x.device)) == recorded


def test_weights_at_another_place_are_recorded_anew(case) -> None:
    net, x, y = case
    both(net, x, y, c=None, norm="L2")
    net.layers[4].weight = nn.Parameter(torch.randn(10, 8 * 36) / 10)
    both(net, x, y, c=None, norm="L2")
    net.layers[1].running_mean = torch.randn(8)
    both(net, x, y, {"fold_batch_norm": False}, c=None, norm="L2")


def test_other_precisions_of_products_are_recorded_anew(case) -> None:
    """Set by operator, as torch 2.9 has it: then the flags of before must not be read."""
    net, x, y = case
    both(net, x, y, c=None)
    operators: Any = (torch.backends.cudnn.conv, torch.backends.cudnn.rnn)
    before = [operator.fp32_precision for operator in operators]
    try:
        operators[1].fp32_precision = "ieee"
        for precision, recordings in (("ieee", 2), ("tf32", 3), ("ieee", 3)):
            operators[0].fp32_precision = precision
            both(net, x, y, c=None)
            assert len(graphs.graphs_of(net, x.device)) == recordings
    finally:
        for operator, precision in zip(operators, before, strict=True):
            operator.fp32_precision = precision


def test_recordings_are_bounded(case, monkeypatch) -> None:
    net, x, y = case
    monkeypatch.setattr(graphs, "RECORDINGS", 4)
    monkeypatch.setattr(graphs, "MOST", 2)
    attack = fastsal.PGD(net, 0.1, steps=3, fast=levers(True), precision="fp32")
    kept = []
    for _ in range(4):
        kept.append(net.layers[4].weight)  # so that its address is not given out again
        net.layers[4].weight = nn.Parameter(net.layers[4].weight.detach().clone())
        attack(x, y, seed=1)
        assert len(graphs.graphs_of(net, x.device)) <= 2
    net.layers[4].weight = nn.Parameter(net.layers[4].weight.detach().clone())
    with pytest.warns(fastsal.FallbackWarning, match="Net runs without CUDA graphs from here on: 4 graphs were"):
        _, info = attack(x, y, seed=1, return_info=True)
    assert info.levers["cuda_graphs"].startswith("off: 4 graphs")


def test_what_cannot_be_recorded_runs_as_it_is_and_is_said_once(case, monkeypatch, recwarn) -> None:
    class Refuses(Tape):
        def record(self, work: Callable[[], Tensor]) -> tuple[graphs.Replay, Tensor]:
            work()
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setitem(graphs.RECORDERS, "cpu", Refuses)
    net, x, y = case
    for _ in range(2):
        info = both(net, x, y, c=0.2, precision="fp32")
        assert info.levers["cuda_graphs"] == "off: operation not permitted when stream is capturing"
    assert [str(w.message) for w in recwarn if w.category is fastsal.FallbackWarning] == [
        "cuda_graphs: Net runs without CUDA graphs from here on: operation not permitted when stream is capturing"
    ]


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"fast": levers(True, live_rows="exact")}, "off: live_rows='exact' makes batches of any size"),
        ({"fast": levers(True), "compile": "eager"}, "off: the model is compiled"),
        ({"fast": levers(False)}, "off"),
        ({"fast": False}, "off"),
        ({"fast": levers("auto")}, "off: they would hold 20% of the device's memory; cuda_graphs=True allows it"),
    ],
)
def test_where_it_is_off_it_says_why(how: dict[str, Any], why: str, case) -> None:
    net, x, y = case
    assert fastsal.PGD(net, 0.1, steps=2, **how)(x, y, return_info=True)[1].levers["cuda_graphs"] == why


def test_unasked_they_hold_an_eighth_of_the_memory_at_most(case, recwarn) -> None:
    """What they would hold more than that is given back, and the attack goes on without; who asks for them has them."""
    net, x, y = case
    kept = graphs.graphs_of(net, x.device)
    unasked, asked = (fastsal.PGD(net, 0.1, steps=3, fast=levers(on), precision="fp32") for on in ("auto", True))
    expected, info = fastsal.PGD(net, 0.1, steps=3, fast=levers(False), precision="fp32")(
        x, y, seed=1, return_info=True
    )
    for _ in range(2):
        assert torch.equal(unasked(x, y, seed=1), expected) and len(kept) == 0
    got, info = asked(x, y, seed=1, return_info=True)
    assert torch.equal(got, expected) and info.levers["cuda_graphs"] == "on" and len(kept) == 1
    assert not [w for w in recwarn if w.category is fastsal.FallbackWarning]


def test_unasked_they_come_without_folding(case, monkeypatch) -> None:
    """Folding anew at each call would take longer than what it saves."""
    net, x, y = case
    monkeypatch.setattr(graphs.graphs_of(net, x.device)._recorder, "share_of_memory", lambda: 0.1)
    for fold_batch_norm, folded in (("auto", "off: CUDA graphs replay"), (True, "on: 1 folded")):
        switches = levers("auto", fold_batch_norm=fold_batch_norm)
        _, info = fastsal.PGD(net, 0.1, steps=3, fast=switches, precision="fp32")(x, y, return_info=True)
        assert info.levers["cuda_graphs"] == "on"
        assert info.levers["fold_batch_norm"].startswith(folded)


@pytest.mark.parametrize("kind", ["path", "number", "size"])
def test_a_model_whose_forward_is_not_the_same_twice_is_not_recorded(kind: str, case) -> None:
    """A graph would repeat one of its ways for ever."""
    net, x, y = case
    honest, calls = net.forward, itertools.count()

    def forward(x: Tensor) -> Tensor:
        turn = next(calls) % 2
        if kind == "path":
            return honest(x) if turn else honest(x.relu())
        if kind == "number":
            return honest(x) + 0.1 * turn
        return honest(nn.functional.pad(x, (turn, 0))[..., -8:])

    net.forward = forward
    attack = fastsal.PGD(net, 0.1, steps=2, fast=levers(True, fold_batch_norm=False), precision="fp32")
    with pytest.warns(fastsal.FallbackWarning, match="two forwards of one batch were not alike"):
        _, info = attack(x, y, return_info=True)
    assert info.levers["cuda_graphs"].startswith("off: two forwards")


def test_hooks_are_called(case) -> None:
    net, x, y = case
    seen: list[int] = []
    net.layers[0].register_forward_hook(lambda module, args, output: seen.append(len(output)))
    info = both(net, x, y, c=None)
    assert len(seen) == 12 and info.levers["cuda_graphs"] == "off: Conv2d has hooks, which a graph would not call"


def test_a_device_without_graphs(case, monkeypatch) -> None:
    net, x, y = case
    monkeypatch.delitem(graphs.RECORDERS, "cpu")
    assert both(net, x, y, c=None).levers["cuda_graphs"] == "off: x is on cpu"


def test_an_attack_within_an_attack_runs_as_it_is(case) -> None:
    """Between the passes of the one outside, whose logits and weights it must not touch."""
    net, x, y = case
    inner = fastsal.PGD(net, 0.1, steps=2, fast=levers(True), precision="fp32")
    notes = []

    def loss(z: Tensor, y: Tensor) -> Tensor:
        notes.append(inner(x, seed=3, return_info=True)[1].levers["cuda_graphs"])
        return nn.functional.cross_entropy(z, y, reduction="none")

    assert both(net, x, y, c=None, loss=loss).levers["cuda_graphs"] == "on"
    assert set(notes[6:]) == {"off: an attack on this model is under way"}


def test_an_error_of_the_model_is_the_models_and_the_next_attack_is_free_again(case) -> None:
    net, x, y = case
    attack = fastsal.PGD(net, 0.1, steps=2, fast=levers(True, fold_batch_norm=False), precision="fp32")
    net.layers[4].forward = lambda h: h.no_such_thing
    with pytest.raises(AttributeError, match="no_such_thing"):
        attack(x, y)
    del net.layers[4].forward
    assert attack(x, y, return_info=True)[1].levers["cuda_graphs"] == "on"


def test_recordings_go_with_the_model(case) -> None:
    net, x, y = case
    fastsal.PGD(net, 0.1, steps=2, fast=levers(True))(x, y)
    gone = weakref.ref(net)
    other = Net()
    fastsal.PGD(other, 0.1, steps=2, fast=levers(True))(x, y)
    gone_too = weakref.ref(other)
    del other
    gc.collect()
    assert gone_too() is None and gone() is net
    assert len(graphs._graphs) >= 1
