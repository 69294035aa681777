"""The contract of an attack for pairs of everything: levers, precision, compile, norms, losses, rules, kinds of models.

Two settings that go wrong together are the likely failure, so that any two values of two settings meet in some cell.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from covering import Cell, covering, pairs_of, possible_pairs
from torch import Tensor, nn

import fastsal

N, CLASSES, STEPS = 8, 4, 3
IMAGES, SEQUENCES = (N, 2, 6, 6), (N, 5, 4)
FLIPS = 0.02  # share of elements: signs of near-zero gradients, or of ties in L1, once or twice
RADII = {"Linf": 0.08, "L2": 0.5, "L1": 2.0}

# ---------------------------------------------------------------------------------- models


class Plain(nn.Module):
    """Calls .view after convolutions, which channels_last forbids."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        z = self.second(torch.tanh(self.first(x)))
        return self.head(z.view(len(z), -1))


class Normed(nn.Module):
    def __init__(self, dropout: float = 0.0, frozen: bool = False) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm1d(16)
        self.again, self.head = nn.Conv2d(4, 4, 3), nn.Linear(16, CLASSES)
        self.drop = nn.Dropout(dropout)
        nn.init.uniform_(self.norm.running_var, 0.2, 1)
        if frozen:
            self.norm.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        z = self.again(torch.tanh(self.norm(self.conv(x))))
        return self.head(self.drop(self.last(z.flatten(1))))


class WithLogits(Normed):
    def forward(self, x: Tensor) -> Any:
        return SimpleNamespace(logits=super().forward(x))


class InATuple(Normed):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x)[0][:, -1])


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True)
        self.head = nn.Linear(20, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).flatten(1))


class Embedded(nn.Module):
    """A text model from its embeddings on; the table itself is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layers, self.head = nn.Embedding(9, 4), nn.GRU(4, 6, batch_first=True), nn.Linear(6, CLASSES)

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layers(embeddings)[0]).mean(1))


def compiled() -> Any:
    return torch.compile(Normed(), backend="eager", dynamic=True)


MODELS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "plain, with .view": (Plain, IMAGES),
    "batch norm": (Normed, IMAGES),
    "dropout": (lambda: Normed(dropout=0.5), IMAGES),
    "frozen batch norm": (lambda: Normed(frozen=True), IMAGES),
    ".logits": (WithLogits, IMAGES),
    "tuple": (InATuple, IMAGES),
    "LSTM": (Recurrent, SEQUENCES),
    "transformer": (Transformer, SEQUENCES),
    "embeddings": (Embedded, SEQUENCES),
    "compiled": (compiled, IMAGES),
    "DDP": (lambda: nn.parallel.DistributedDataParallel(Normed()), IMAGES),
    "DataParallel": (lambda: nn.DataParallel(Normed()), IMAGES),
    "float64": (lambda: Normed().double(), IMAGES),
    "partial": (lambda: functools.partial(Normed()), IMAGES),
    "bound method": (lambda: Normed().forward, IMAGES),
}


def module_of(model: Any) -> nn.Module:
    model = model.func if isinstance(model, functools.partial) else model
    return model if isinstance(model, nn.Module) else model.__self__


def confident(model: Any) -> Any:
    """In train mode, with logits far enough apart for some rows to be under the cut, and a gradient that is there."""
    module = module_of(model)
    with torch.no_grad():
        next(p for name, p in module.named_parameters() if name.endswith("head.weight")).mul_(6)
    next(module.parameters()).grad = torch.ones_like(next(module.parameters()))
    return model


# ---------------------------------------------------------------------------------- settings


def softplus_margin(logits: Tensor, y: Tensor) -> Tensor:
    return F.softplus(logits.logsumexp(1) - 1.5 * logits.gather(1, y[:, None])[:, 0])


RULES: dict[str, dict[str, Any]] = {
    "SENSE": {"c": 0.4},
    "SENSE, decided at x": {"c": 0.4, "decide_at": "clean", "ignored": "start"},
    "warm-up": {"c": 0.4, "truncate": False},
    "SENSE, momentum": {"c": 0.4, "momentum": 1.0},
    "PGD": {"c": None},
    "targeted": {"c": None, "targeted": True},
    "FAT": {"c": None, "tau": 1},
    "APGD": {"c": None, "step_rule": "apgd"},
}
SETTINGS: dict[str, list[Any]] = {
    "model": list(MODELS),
    "rule": list(RULES),
    "loss": ["ce", "kl", "margin", "dlr", "callable"],
    "norm": list(RADII),
    "random_start": [True, False],
    "live_rows": ["off", "exact", "buckets"],
    "channels_last": [False, True],
    "fold_batch_norm": [False, True],
    "lean_batch_norm": [False, True],
    "kept_memory": [False, True],
    "precision": ["fp32", "bf16", "auto"],
    "compile": [False, "eager", "aot_eager"],
    "layout": ["contiguous", "channels_last"],
    "radius": ["one", "per sample"],
    "box": ["numbers", "per channel"],
    "normalize": [False, True],
}
COMPILED = {"eager": {"batch norm", "LSTM", "float64"}, "aot_eager": {"dropout"}}


def allowed(cell: Cell) -> bool:
    """A KL needs a random start and has no target; a .view does not take images that are given channels last; and
    compiling takes a second a shape, so that few models are compiled."""
    if cell.get("loss") == "kl" and (cell.get("random_start") is False or cell.get("rule") == "targeted"):
        return False
    if cell.get("model") == "plain, with .view" and cell.get("layout") == "channels_last":
        return False
    backend, model = cell.get("compile"), cell.get("model")
    return not backend or model is None or model in COMPILED[backend]


CELLS = covering(SETTINGS, allowed)


def test_every_pair_is_in_a_cell() -> None:
    every = possible_pairs(SETTINGS, allowed)
    assert {pair for cell in CELLS for pair in pairs_of(cell)} == every
    lengths = [len(values) for values in SETTINGS.values()]
    assert len(every) > 0.9 * sum(a * b for i, a in enumerate(lengths) for b in lengths[:i])
    assert all(allowed(cell) and list(cell) == list(SETTINGS) for cell in CELLS)


def test_a_pair_that_cannot_be_is_not_asked_for() -> None:
    cells = covering({"a": [1, 2], "b": [1, 2], "c": [1, 2]}, lambda cell: cell.get("a") != cell.get("b"))
    assert all(cell["a"] != cell["b"] for cell in cells) and len(cells) == 4


# ---------------------------------------------------------------------------------- one cell


@pytest.fixture(scope="module", autouse=True)
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    store = Path(tmp_path_factory.mktemp("gloo")) / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
    torch.set_num_threads(threads)


def name_of(cell: Cell) -> str:
    return f"{CELLS.index(cell)}: {cell['model']}, {cell['rule']}, {cell['loss']}, {cell['norm']}, {cell['precision']}"


class Case:
    """The attack of a cell, its inputs, and the plain attack beside it."""

    def __init__(self, cell: Cell) -> None:
        torch.manual_seed(7)
        make, shape = MODELS[cell["model"]]
        self.model, self.norm = confident(make()), cell["norm"]
        dtype = next(module_of(self.model).parameters()).dtype
        draws = torch.Generator().manual_seed(5)
        x = torch.rand(shape, generator=draws, dtype=dtype)
        if cell["layout"] == "channels_last" and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        self.box: tuple[Any, Any] = (0.0, 1.0)
        if cell["box"] == "per channel":
            self.box = torch.full((shape[1],), -0.1, dtype=dtype), torch.linspace(1, 1.1, shape[1], dtype=dtype)
        if cell["model"] == "embeddings":
            x, self.box = 4 * x - 2, (None, None)
        eps = RADII[self.norm]
        self.eps = torch.linspace(eps / 2, eps, N, dtype=dtype) if cell["radius"] == "per sample" else eps
        how = {"norm": self.norm, "steps": STEPS, "random_start": cell["random_start"], **RULES[cell["rule"]]}
        how["loss"] = softplus_margin if cell["loss"] == "callable" else cell["loss"]
        how["normalize"] = ((0.1, 0.9) if x.dim() == 3 else ([0.1, 0.2], [0.9, 0.8])) if cell["normalize"] else None
        how["clip_min"], how["clip_max"] = self.box
        levers = ("live_rows", "channels_last", "fold_batch_norm", "lean_batch_norm", "kept_memory")
        self.how, self.options = how, {"precision": cell["precision"], "compile": cell["compile"]}
        self.options["fast"] = fastsal.Levers(**{name: cell[name] for name in levers})
        self.x, self.y = x, torch.arange(N) % CLASSES
        if not how.get("targeted"):
            self.y = self.predicted()
            self.y[::5] = (self.y[::5] + 1) % CLASSES

    def predicted(self) -> Tensor:
        seen: list[Tensor] = []

        def keep(logits: Tensor, y: Tensor) -> Tensor:
            seen.append(logits.detach().clone())
            return F.cross_entropy(logits, y, reduction="none")

        same = {name: self.how[name] for name in ("normalize", "clip_min", "clip_max")}
        options = {"eps": 1e-6, "steps": 1, "c": None, "loss": keep, "random_start": False, "fast": False, **same}
        fastsal.perturb(self.model, self.x, torch.zeros(N, dtype=torch.int64), **options)
        return seen[0].argmax(1)

    def run(self, rows: slice = slice(None), **options: Any) -> tuple[Tensor, fastsal.AttackInfo]:
        eps = self.eps[rows] if isinstance(self.eps, Tensor) else self.eps
        ids = torch.arange(N)[rows]
        how = {**self.how, **(options or self.options), "seed": 3, "sample_ids": ids, "return_info": True}
        return fastsal.perturb(self.model, self.x[rows], self.y[rows], eps, **how)


def traces(model: nn.Module) -> list[Any]:
    """What an attack could leave in a model, objects by identity and values by bytes."""
    found: list[Any] = [(name, part.training, sorted(vars(part))) for name, part in model.named_modules()]
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        found.append(
            (name, id(tensor), tensor.requires_grad, id(tensor.grad), tensor.detach().clone().numpy().tobytes())
        )
    return [*found, torch.get_rng_state().tolist(), torch.is_grad_enabled(), torch.backends.cudnn.enabled]


def assert_inside(case: Case, x_adv: Tensor) -> None:
    delta = (x_adv.double() - case.x.double()).flatten(1)
    size = {"Linf": delta.abs().amax(1), "L2": delta.norm(dim=1), "L1": delta.abs().sum(1)}[case.norm]
    assert (size <= torch.as_tensor(case.eps, dtype=torch.float64)).all()
    for edge, sign in zip(case.box, (1, -1), strict=True):
        if edge is not None:
            edge = torch.as_tensor(edge, dtype=torch.float64).reshape(-1, *[1] * (case.x.dim() - 2))
            assert (sign * (x_adv.double() - edge) >= 0).all()


def assert_coherent(case: Case, info: fastsal.AttackInfo, x_adv: Tensor) -> None:
    assert info.stop_step.shape == info.ignored.shape == info.nonfinite.shape == (N,) and not info.nonfinite.any()
    assert sum(info.stop_histogram.values()) == N and info.stop_step.min() >= -1 and info.stop_step.max() <= STEPS
    assert info.live == sorted(info.live, reverse=True) and info.stepped == sorted(info.stepped, reverse=True)
    assert len(info.stepped) == STEPS and info.stepped[0] <= info.live[0] <= N
    assert info.row_forwards >= sum(info.live) and info.row_backwards >= sum(info.stepped)
    assert info.forwards_per_sample == info.row_forwards / N and info.live_share == [n / N for n in info.stepped]
    assert info.ignored_share == int(info.ignored.sum()) / N and (info.stop_step[info.ignored] == -1).all()
    assert info.ignored.any() or case.how["c"] is None
    if info.levers["live_rows"].startswith("exact"):
        clean = case.how["loss"] == "kl" or (case.how.get("decide_at") == "clean" and case.how["random_start"])
        steps = sum(count > 0 for count in info.stepped)
        assert info.row_forwards == sum(info.live) + N * clean and info.row_backwards == sum(info.live[:steps])
    if case.how.get("ignored") != "start":
        assert torch.equal(x_adv[info.ignored], case.x[info.ignored])
    assert 0 < info.seconds["model"] < info.seconds["all"]


def share_apart(a: Tensor, b: Tensor) -> float:
    return float(((a - b).abs() > 1e-5).double().mean())


@pytest.mark.parametrize("cell", CELLS, ids=name_of)
def test_the_contract(cell: Cell) -> None:
    case = Case(cell)
    x_before, version, before = case.x.clone(), case.x._version, traces(module_of(case.model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fastsal.FallbackWarning)
        x_adv, info = case.run()
        again, _ = case.run()
        parts = [case.run(rows) for rows in (slice(0, 3), slice(3, N))]
        expected, plain = case.run(fast=False)
    assert traces(module_of(case.model)) == before
    assert torch.equal(case.x, x_before) and case.x._version == version and case.x.grad is None
    assert not x_adv.requires_grad and x_adv.grad_fn is None and not x_adv.is_inference()
    assert (x_adv.dtype, x_adv.device, x_adv.stride()) == (case.x.dtype, case.x.device, case.x.stride())
    assert x_adv.data_ptr() != case.x.data_ptr() and x_adv.isfinite().all()
    assert_inside(case, x_adv)
    assert_coherent(case, info, x_adv)
    assert torch.equal(again, x_adv)
    low = info.levers["precision"].startswith("bf16:")
    assert low == (cell["precision"] == "bf16" and cell["model"] != "float64") or cell["precision"] == "auto"
    if low:
        return  # a batch cut elsewhere, and the plain path, round otherwise
    together = torch.cat([part for part, _ in parts])
    stops = torch.cat([part_info.stop_step for _, part_info in parts])
    assert share_apart(together, x_adv) <= FLIPS and share_apart(expected, x_adv) <= FLIPS
    assert int((stops != info.stop_step).sum()) <= 1 and int((plain.stop_step != info.stop_step).sum()) <= 1
