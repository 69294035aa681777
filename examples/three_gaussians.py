"""What SENSE keeps and what plain adversarial training loses, on three Gaussian clusters in the plane.

Class 0 sits at (-1, 0), class 1 at (1, 7) and (1, -7), each with sigma 0.2; the adversary moves a point by up to 1.6.

- A straight boundary separates the classes, best the vertical line x = 0, but the balls of radius 1.6 overlap on it.
  The adversarial loss of logistic regression is then smallest for the classifier that says 1/2 everywhere, so PGD
  training gives the line up. SENSE attacks a point only as far as the model stays sure of it, and keeps the line.
- A small network can bend around the middle cluster and be robust. There both adversaries find it.

    python examples/three_gaussians.py --out docs/three_gaussians.png     # about half a minute; needs matplotlib
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import fastsal

EPS, C, SIGMA = 1.6, 0.9, 0.2
CENTRES = torch.tensor([[-1.0, 0.0], [1.0, 7.0], [1.0, -7.0]])
PLANE: dict[str, Any] = {"norm": "L2", "clip_min": None, "clip_max": None}
METHODS = {"natural": "natural training", "pgd": "PGD training", "sense": f"SENSE, c = {C}"}
MODELS = {
    "line": lambda: nn.Linear(2, 2),
    "curve": lambda: nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)),
}


class Outcome(NamedTuple):
    """A trained model and its numbers on fresh points; accuracies and probability in [0, 1]."""

    model: nn.Module
    natural: float
    worst: float
    sure: float  # mean probability of the true class
    loss: float  # in training, on the points trained on


def points(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """x (count, 2) and y (count,): half of them class 0, a quarter in each cluster of class 1."""
    cluster = torch.tensor([0, 1, 0, 2]).repeat(count // 4)
    return CENTRES[cluster] + SIGMA * torch.randn(len(cluster), 2, generator=generator), (cluster > 0).long()


def run(kind: str, method: str, seed: int, epochs: int = 30, count: int = 800) -> Outcome:
    generator = torch.Generator().manual_seed(seed)
    x, y = points(count, generator)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MODELS[kind]()
    batches = list(zip(x.split(100), y.split(100), strict=True))
    result = fastsal.train(
        model, batches, method=method, eps=EPS, c=C, epochs=epochs, seed=seed, progress=False, **PLANE
    )
    x, y = points(400, generator)
    report = fastsal.evaluate(model, [(x, y)], EPS, progress=False, **PLANE)
    with torch.no_grad():
        sure = torch.softmax(model(x), dim=1).gather(1, y[:, None]).mean()
    return Outcome(
        model, report.natural_accuracy, report.robust_accuracy["worst"], float(sure), result.history[-1]["loss"]
    )


def bayes(x: Tensor) -> Tensor:
    """log p(class 1 | x) - log p(class 0 | x), from the densities."""
    log_density = -(torch.cdist(x.double(), CENTRES.double()) ** 2) / (2 * SIGMA**2)
    return (log_density[:, 1:] - torch.log(torch.tensor(2.0))).logsumexp(dim=1) - log_density[:, 0]


def draw(outcomes: dict[tuple[str, str], list[Outcome]], path: str) -> None:
    """One panel per model and method: shading of the first seed, boundaries of all."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Circle, Patch

    blue, orange, dark, reference = "#1f5fa8", "#d1580f", "#1a1a1a", "#7b2d8e"
    dashed = {"colors": reference, "linestyles": "dashed", "linewidths": 2.0, "zorder": 1.5}
    shades = LinearSegmentedColormap.from_list("classes", ["#9dc1e8", "#ffffff", "#f7bd94"])
    figure = Figure(figsize=(11, 9.6), layout="constrained")
    across, up = torch.linspace(-7.6, 7.6, 305), torch.linspace(-9.2, 9.2, 369)
    grid_x, grid_y = torch.meshgrid(across, up, indexing="xy")
    grid = torch.stack([grid_x, grid_y], dim=2).view(-1, 2)
    mesh = (grid_x.numpy(), grid_y.numpy())
    x, y = points(240, torch.Generator().manual_seed(99))
    rows = {
        "line": "No straight boundary is robust: logistic regression",
        "curve": "A curved boundary can be: a network with two hidden layers",
    }
    for figure_row, kind in zip(figure.subfigures(2, 1, hspace=0.03), rows, strict=True):
        figure_row.suptitle(rows[kind], fontsize=13, fontweight="bold", color=dark)
        for axis, (method, title) in zip(figure_row.subplots(1, 3, sharey=True), METHODS.items(), strict=True):
            runs = outcomes[kind, method]
            for place, outcome in enumerate(runs):
                with torch.no_grad():
                    p = torch.softmax(outcome.model(grid), dim=1)[:, 1].view(grid_x.shape)
                if place == 0:
                    axis.imshow(
                        p.numpy(),
                        cmap=shades,
                        vmin=0,
                        vmax=1,
                        extent=(-7.6, 7.6, -9.2, 9.2),
                        origin="lower",
                        aspect="equal",
                    )
                axis.contour(*mesh, p.numpy(), levels=[0.5], colors=dark, linewidths=1.2, alpha=0.85, zorder=2)
            best = grid_x if kind == "line" else bayes(grid).view(grid_x.shape)
            axis.contour(*mesh, best.numpy(), levels=[0], **dashed)
            for label, colour in enumerate((blue, orange)):
                axis.scatter(*x[y == label].T.numpy(), s=5, color=colour, linewidths=0, zorder=4)
            for centre, colour in zip(CENTRES.tolist(), (blue, orange, orange), strict=True):
                axis.add_patch(Circle(centre, EPS, fill=False, edgecolor=colour, linewidth=1.2, zorder=3))
            natural, worst, sure = (
                sum(getattr(run, name) for run in runs) / len(runs) for name in ("natural", "worst", "sure")
            )
            axis.set_title(title, fontsize=12, color=dark)
            axis.set_xlabel(
                f"natural accuracy {natural:.0%}, under attack {worst:.0%}\n"
                f"mean probability of the true class {sure:.2f}",
                fontsize=10,
                color=dark,
            )
            axis.set(xticks=[-5, 0, 5], yticks=[-7, 0, 7], xlim=(-7.6, 7.6), ylim=(-9.2, 9.2))
            axis.tick_params(labelsize=8, length=2)
    count = max(map(len, outcomes.values()))
    figure.legend(
        handles=[
            Line2D([], [], color=blue, marker="o", linestyle="", label="class 0"),
            Line2D([], [], color=orange, marker="o", linestyle="", label="class 1"),
            Line2D(
                [], [], color="#888888", marker="o", linestyle="", fillstyle="none", markersize=10, label="reach 1.6"
            ),
            Line2D([], [], color=dark, label=f"learnt, {count} seed{'s'[: count > 1]}"),
            Line2D(
                [], [], color=reference, linestyle="dashed", linewidth=2, label="best line (top), Bayes rule (below)"
            ),
            Patch(facecolor="white", edgecolor="#888888", label="white: undecided"),
        ],
        loc="outside lower center",
        ncols=6,
        frameon=False,
        fontsize=10,
        columnspacing=1.4,
    )
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="three_gaussians.png", help="where the picture goes")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each kind, a number >= 1")
    parser.add_argument("--quick", action="store_true", help="one seed and few epochs: a look, not the figure")
    args = parser.parse_args()
    torch.set_num_threads(1)  # quicker for models this small
    seeds, epochs = (1, 8) if args.quick else (args.seeds, 30)
    outcomes: dict[tuple[str, str], list[Outcome]] = {}
    print(f"{'model':<6} {'method':<8} {'natural':>8} {'worst':>8} {'p(true)':>8} {'loss':>8}   by seed")
    for kind in MODELS:
        for method in METHODS:
            outcomes[kind, method] = [run(kind, method, seed, epochs) for seed in range(seeds)]
            for outcome in outcomes[kind, method]:
                print(
                    f"{kind:<6} {method:<8} {outcome.natural:>8.1%} {outcome.worst:>8.1%} {outcome.sure:>8.3f} "
                    f"{outcome.loss:>8.4f}"
                )
    draw(outcomes, args.out)
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
