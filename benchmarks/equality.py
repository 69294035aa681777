"""What makes an attack fast does not change its result: ``python -m benchmarks.equality``.

Three models (natural, PGD and SENSE training on the embedded images, kept under runs/) and the Fashion-MNIST test
images: the 10,000 where ``fastsal.data.load("fashion-mnist")`` finds them, else the 2,000 embedded ones. Ends with an
error where a bound is broken; ``--write FILE`` replaces the marked section of that file.
"""

from __future__ import annotations

import argparse
import copy
import math
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastsal
from benchmarks import marked, plain_attack, trained, where
from benchmarks.alternation import processor

METHODS = ("natural", "pgd", "sense")
EPOCHS, BATCH, STEPS, SEED = 3, 256, 10, 0
ALPHA = 1.875 * trained.EPS / STEPS
CONTROL = 256  # images for the comparison with fp64
AT_CUT, MOST_ELEMENTS, MOST_POINTS = 1e-5, 1e-3, 0.2  # the bounds
ATTACKS = {"SENSE": trained.C, "PGD-10": None}
FAST: dict[str, Any] = {"fast": True, "precision": "fp32"}
PLAIN: dict[str, Any] = {"fast": False}


@dataclass(frozen=True)
class Rows:
    """Images, labels and identities of a batch."""

    x: Tensor
    y: Tensor
    ids: Tensor

    def __getitem__(self, rows: Tensor) -> Rows:
        return Rows(self.x[rows], self.y[rows], self.ids[rows])

    def batches(self) -> Iterator[Rows]:
        for rows in torch.arange(len(self.y)).split(BATCH):
            yield self[rows]


@dataclass
class Compared:
    """One attack on one model: all levers against none."""

    rows: int = 0
    elements: int = 0
    other_stops: int = 0  # rows
    not_at_the_cut: int = 0  # of these
    other_elements: int = 0

    @property
    def share(self) -> float:
        return self.other_elements / max(self.elements, 1)

    @property
    def broken(self) -> bool:
        return self.not_at_the_cut > 0 or self.share > MOST_ELEMENTS


def perturbed(model: nn.Module, rows: Rows, c: float | None, steps: int = STEPS, **how: Any) -> Any:
    attack = fastsal.SENSE(model, trained.EPS, ALPHA, steps, c, **how)
    return attack(rows.x, rows.y, seed=SEED, sample_ids=rows.ids, return_info=True)


def far_from_cut(model: nn.Module, rows: Rows, step: int, how: dict[str, Any]) -> Tensor:
    """Whether iterate `step` of each row, on this path, has a loss more than 1e-5 from the cut; in fp64."""
    x_k = fastsal.functional.random_start(rows.x, trained.EPS, SEED, sample_ids=rows.ids)
    if step:
        x_k = perturbed(model, rows, None, step, **how)[0]
    with torch.no_grad():
        z = copy.deepcopy(model).double()(x_k.double())
    losses = nn.functional.cross_entropy(z, rows.y, reduction="none")
    return (losses + math.log(trained.C)).abs() > AT_CUT


def compare(model: nn.Module, rows: Rows, c: float | None) -> Compared:
    found = Compared()
    for batch in rows.batches():
        fast, fast_info = perturbed(model, batch, c, **FAST)
        plain, plain_info = perturbed(model, batch, c, **PLAIN)
        found.rows += len(batch.y)
        found.elements += plain.numel()
        found.other_elements += int((fast != plain).sum())
        stops = torch.minimum(fast_info.stop_step, plain_info.stop_step)
        other = fast_info.stop_step != plain_info.stop_step
        found.other_stops += int(other.sum())
        for stop in stops[other].unique().tolist():  # where one path stopped, and the other went on
            split = batch[(other & (stops == stop)).nonzero().squeeze(1)]
            far = [far_from_cut(model, split, stop + 1, how) for how in (FAST, PLAIN)]
            found.not_at_the_cut += int((far[0] & far[1]).sum())
    return found


def share_against_fp64(model: nn.Module, rows: Rows, c: float | None) -> float:
    """Share of the elements in which the plain path differs from a hand-written loop in fp64, from the same start.

    What fp32 itself does to the result: any other order of its sums may do as much.
    """
    exact, other, elements = copy.deepcopy(model).double(), 0, 0
    for batch in rows.batches():
        plain = perturbed(model, batch, c, **PLAIN)[0]
        x_0 = fastsal.functional.random_start(batch.x, trained.EPS, SEED, sample_ids=batch.ids)
        given = (exact, batch.x.double(), batch.y, x_0.double(), trained.EPS, ALPHA, STEPS)
        looped = plain_attack.pgd(*given) if c is None else plain_attack.sense(*given, -math.log(c))[0]
        other += int(((plain - looped).abs() > 1e-6).sum())
        elements += plain.numel()
    return other / max(elements, 1)


def right(model: nn.Module, rows: Rows, precision: str | None) -> int:
    """Rows that the model, in fp32, gets right after PGD-10; None: as they are."""
    count = 0
    for batch in rows.batches():
        x = batch.x if precision is None else perturbed(model, batch, None, precision=precision)[0]
        with torch.no_grad():
            count += int((model(x).argmax(1) == batch.y).sum())
    return count


def test_images(name: str | None) -> tuple[str, Rows]:
    try:
        dataset = fastsal.data.load(name or "fashion-mnist")
    except fastsal.data.DataNotFoundError as error:
        if name is not None:
            raise
        print(f"the embedded images, since {error}", flush=True)
        dataset = fastsal.data.load("fashion-mnist-mini")
    assert dataset.test is not None
    x = dataset.test.images.float() / 255
    return dataset.name, Rows(*map(where.here, (x, dataset.test.labels, torch.arange(len(x)))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where.add_option(parser.add_argument)
    parser.add_argument("--data", help="a name or a path, as fastsal.data.load takes it")
    parser.add_argument("--rows", type=int, default=2000, help="images for the fp32 levers (default %(default)s)")
    parser.add_argument("--images", type=int, default=10_000, help="images for bf16 (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of training (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/equality"), help="folder of the three models")
    parser.add_argument("--write", type=Path, help="a markdown file whose marked section is replaced")
    options = parser.parse_args()
    where.choose(options.device)

    name, images = test_images(options.data)
    some, all_of_them = (images[torch.arange(min(n, len(images.y)))] for n in (options.rows, options.images))
    equal: list[list[str]] = []
    accurate: list[list[str]] = []
    broken: list[str] = []
    models = {method: trained.kept(method, options.epochs, options.out) for method in METHODS}
    with where.strict_fp32():
        for method, model in models.items():
            where.here(model)
            for attack, c in ATTACKS.items():
                found = compare(model, some, c)
                of_fp32 = share_against_fp64(model, some[torch.arange(min(CONTROL, len(some.y)))], c)
                counts = (str(found.other_stops), str(found.not_at_the_cut))
                equal.append([method, attack, *counts, f"{found.share:.1e}", f"{of_fp32:.1e}"])
                print("  ".join(equal[-1]), flush=True)
                broken += [f"{attack} on {method}"] if found.broken else []
            shares = [100 * right(model, all_of_them, p) / len(all_of_them.y) for p in (None, "fp32", "bf16")]
            gap = abs(shares[2] - shares[1])
            accurate.append([method, *(f"{share:.2f}" for share in shares), f"{gap:.2f}"])
            print("  ".join(accurate[-1]), flush=True)
            broken += [f"bf16 on {method}"] if gap > MOST_POINTS else []

    heads = ("training", "attack", "rows with another stop step", "of these not at the cut", "share of other elements")
    heads += ("fp32 against fp64",)
    text = "\n\n".join(
        [
            f"{processor()}, torch {torch.__version__}, {platform.system()} {platform.machine()}. SmallCNN, "
            f"{options.epochs} epochs of each training on the embedded images; Linf, eps = {trained.EPS:g}, {STEPS} "
            f"steps, c = {trained.C:g}; the first test images of {name}.",
            f"All levers in fp32 against `fast=False`, {len(some.y):,} images. *At the cut*: the loss of the iterate "
            f"that was the last on one path and not on the other is within {AT_CUT:g} of the cut. Bounds: no row that "
            f"is not, {MOST_ELEMENTS:g} of the elements. Beside it the share of elements in which the plain path "
            f"differs from a loop in fp64, on {CONTROL} images: where rounding turns one sign, or takes another branch "
            "of a ReLU or of a maximum, the steps after it turn more in that row.",
            marked.table(heads, equal, words=2),
            f"Accuracy in % on {len(all_of_them.y):,} images, natural and under PGD-10 that was made in fp32 and in "
            f"bf16 ({'native' if where.native_bf16()[0] else 'emulated'} here), the model in fp32. Bound: "
            f"{MOST_POINTS:g} points.",
            marked.table(("training", "natural", "fp32", "bf16", "points between"), accurate),
            f"Broken: {', '.join(broken)}." if broken else "No bound is broken.",
        ]
    )
    print(f"\n{text}")
    if options.write:
        marked.write(where.section("equality"), text, options.write)
    if broken:
        raise SystemExit(f"broken: {', '.join(broken)}")


if __name__ == "__main__":
    main()
