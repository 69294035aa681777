"""What a step costs on a GPU, predicted from counts: ``python -m benchmarks.cost_model``. Nothing here was measured.

    microseconds = launches * launch latency + bytes / bandwidth

fastsal's bytes and launches are counted: its CUDA kernels run on the emulator (tests/emulator), on two rows of the very
size, which reports how often they were launched and what they read and wrote of rows and wrote of flags, losses and
indices (reading index vectors and labels, a few bytes a row, is not counted). Those of other projects are the loops as
counted in ``PEERS``. Left out, for all alike: the model, what overlaps, and how much of a small batch the L2 cache
holds (at 128x3x32x32 all of it: there the bytes cost less than predicted, and the launches decide).
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
SIZES = {"CIFAR 128x3x32x32": ((128, 3, 32, 32), 10), "ImageNet 64x3x224x224": ((64, 3, 224, 224), 1000)}  # and classes
NORMS = {"Linf": math.inf, "L2": 2.0}
# GB/s at the peak, by NVIDIA's data sheets: A100 80 GB SXM (2,039), H100 SXM (3,350).
BANDWIDTH = {"A100": 2039.0, "H100": 3350.0}
# Microseconds from one launch to the next in a stream of small kernels: an assumption. 4 to 6 are reported for a launch
# through the driver; a call through PyTorch costs more, a CUDA graph less.
LATENCY = 5.0


@dataclass(frozen=True)
class Cost:
    """Launches and bytes of a step over a whole batch."""

    launches: float
    bytes: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.launches + other.launches, self.bytes + other.bytes)

    def microseconds(self, bandwidth: float, latency: float) -> float:
        """The prediction; bandwidth in GB/s, latency in microseconds."""
        return self.launches * latency + self.bytes / (bandwidth * 1e3)


@dataclass(frozen=True)
class Peer:
    """Another project's loop: operations on full-size tensors in one step, each a launch, and the tensors that they
    read and write. Where those were not counted: at least two for each, one read and one written."""

    name: str
    launches: dict[str, int]  # by norm
    passes: dict[str, int]
    waits: str  # for the device, per step

    def cost(self, norm: str, tensor_bytes: int) -> Cost:
        launches = self.launches[norm]
        return Cost(launches, self.passes.get(norm, 2 * launches) * tensor_bytes)


# Counted at the dispatcher, on each project's own sources.
PEERS = (
    Peer("adv-lib pgd_linf", {"Linf": 5}, {}, "0"),
    Peer("torchattacks, MAIR", {"Linf": 7}, {}, "0"),
    Peer("TRADES, ARES2", {"Linf": 8}, {}, "0"),
    Peer("foolbox", {"Linf": 9}, {}, "0"),
    Peer("torchattack, AdvSecureNet", {"Linf": 10}, {}, "0"),
    Peer("advertorch", {"Linf": 12}, {}, "0"),
    Peer("cleverhans", {"Linf": 13}, {}, "0-1"),
    Peer("MadryLab robustness", {"Linf": 13}, {}, "4"),
    Peer("FAT early stop", {"Linf": 14}, {}, "1-2 a sample"),
    Peer("SENSE authors", {"Linf": 15, "L2": 19}, {"Linf": 36, "L2": 43}, "1"),
    Peer("robust_overfitting", {"Linf": 15}, {}, "0"),
    Peer("secml-torch native", {"Linf": 20}, {}, "3 copies"),
    Peer("ART", {"Linf": 21}, {}, "1, an upload"),
    Peer("AutoAttack APGD", {"Linf": 36, "L2": 54}, {"Linf": 74}, "about 4"),
)


# ------------------------------------------------------------------------------------ fastsal, counted

ROWS = 2  # that the emulator runs; every count is per row


def _counted(name: str, *args: object) -> Cost:
    """One call of a CUDA operator on the emulator, per row of `ROWS`; its launches are those of a call."""
    sys.path.append(str(ROOT / "tests"))
    import emulated

    emulated.run_emulated(name, *args)
    moved = sum(traffic.loaded + traffic.stored for traffic in emulated.traffic(name).values())
    return Cost(emulated.launches(name), moved / ROWS)


@functools.cache
def fastsal_costs(norm: str, shape: tuple[int, ...], classes: int) -> dict[str, Cost]:
    """The operators of a step: launches per call, bytes per row. "copy" is what a row costs that leaves."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((ROWS, *shape[1:]), generator=generator)
    grad = torch.randn(x.shape, generator=generator)
    eps, low, high = torch.full((1,), 8 / 255), torch.zeros(1), torch.ones(1)
    index = torch.arange(ROWS)
    logits = torch.randn((ROWS, classes), generator=generator)

    def retire(over: bool) -> Cost:
        flags = torch.full((ROWS,), over)
        stop = torch.zeros(ROWS, dtype=torch.int64)
        return _counted("retire", x, x.clone(), None, flags, index, index, torch.zeros_like(x), stop, 1, False)

    stay, leave = retire(False), retire(True)
    return {
        "pgd_step": _counted("pgd_step", x, x.clone(), grad, eps, eps / 4, low, high, index, index, NORMS[norm], 1),
        "truncated_cross_entropy": _counted("truncated_cross_entropy", logits, torch.zeros(ROWS).long(), index, 0.7),
        "retire": stay,
        "copy": Cost(0, leave.bytes - stay.bytes),
    }


def fastsal_steps(costs: dict[str, Cost], rows: int, steps: int) -> dict[str, Cost]:
    """PGD: the step by itself, as the peers are counted. SENSE: loss, retire and step, all rows live to the end; each
    row is copied to its result once in an attack of `steps` steps."""
    batch = {name: Cost(cost.launches, cost.bytes * rows) for name, cost in costs.items()}
    sense = batch["truncated_cross_entropy"] + batch["retire"] + batch["pgd_step"]
    return {
        "fastsal PGD step": batch["pgd_step"],
        "fastsal SENSE step": sense + Cost(0, batch["copy"].bytes / steps),
    }


# --------------------------------------------------------------------------------------------- output


def table(
    device: str,
    bandwidth: float,
    latency: float,
    size: str,
    norm: str,
    fastsal: dict[str, Cost],
) -> str:
    """One device, size and norm: every loop with its counts and the prediction."""
    shape, _ = SIZES[size]
    lines = [
        f"{device}, {size} fp32, {norm}: prediction, not a measurement",
        f"  {'loop':26} {'launches':>8} {'MB':>9}  {'waits':12} {'predicted us':>12} {'/ PGD step':>11}",
    ]
    best = fastsal["fastsal PGD step"].microseconds(bandwidth, latency)

    def row(name: str, cost: Cost, waits: str, least: bool = False) -> str:
        time, sign = cost.microseconds(bandwidth, latency), ">=" if least else "  "
        moved = f"{sign}{cost.bytes / 1e6:.1f}"
        return f"  {name:26} {cost.launches:8g} {moved:>9}  {waits:12} {f'{sign}{time:.1f}':>12} {time / best:11.2f}"

    lines += [row(name, cost, "0" if "PGD" in name else "1") for name, cost in fastsal.items()]
    for peer in PEERS:
        if norm in peer.launches:
            cost = peer.cost(norm, 4 * math.prod(shape))
            lines.append(row(peer.name, cost, peer.waits, norm not in peer.passes))
    return "\n".join(lines)


def _device(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    if name not in BANDWIDTH or not value:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(BANDWIDTH)}, '=' and GB/s, got {text!r}")
    return name, float(value)


def main(
    arguments: list[str] | None = None,
    counted: Callable[[str, tuple[int, ...], int], dict[str, Cost]] = fastsal_costs,
) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bandwidth", type=_device, action="append", default=[], metavar="DEVICE=GB/s",
                        help=f"default {BANDWIDTH}: data sheets, peak")  # fmt: skip
    parser.add_argument("--latency", type=float, default=LATENCY, metavar="US",
                        help=f"microseconds per launch (default {LATENCY:g}: an assumption)")  # fmt: skip
    parser.add_argument("--steps", type=int, default=10, help="of an attack, over which SENSE copies a row once")
    given = parser.parse_args(arguments)
    bandwidths = BANDWIDTH | dict(given.bandwidth)
    print("Predictions: microseconds = launches * latency + bytes / bandwidth. No GPU was involved.")
    print(f"latency {given.latency:g} us; bandwidth {', '.join(f'{k} {v:g} GB/s' for k, v in bandwidths.items())}.")
    print(
        "fastsal: counted on the emulated CUDA kernels. Others: counted full-size tensor operations, without loss and"
    )
    print("logits; '>=': their tensors were not counted, two per operation are the least. Waits are not in the time.")
    for size, (shape, classes) in SIZES.items():
        for norm in NORMS:
            steps = fastsal_steps(counted(norm, shape, classes), shape[0], given.steps)
            for device, bandwidth in bandwidths.items():
                print("\n" + table(device, bandwidth, given.latency, size, norm, steps))


if __name__ == "__main__":
    main()
