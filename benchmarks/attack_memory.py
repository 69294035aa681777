"""Peak of allocated tensor bytes in one attack, beside the plain fp32 loop: ``python -m benchmarks.attack_memory``.

PGD-10 on the nets and batches of the timed attacks. Counted is what torch's allocator hands out and gets back during
the call, as its profiler records it: points, activations, weights that the attack lays out anew, scratch memory of
convolutions. Ends with an error where a bound is broken. ``--write FILE`` replaces the marked section of that file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fastsal
from benchmarks import marked, plain_attack, where
from benchmarks.alternation import machine
from benchmarks.test_attacks import ALPHA, BF16, EPS, FP32, LOOP, NETS, PLAIN, SEED, STEPS, case
from fastsal.levers import Levers

BOUNDS = {FP32: 1.05, BF16: 0.65}  # of the plain loop
WITHOUT = {f"{FP32}, without {lever}": lever for lever in ("channels_last", "fold_batch_norm", "lean_batch_norm")}


def peak(call: Callable[[], object]) -> int:
    """The most bytes that were allocated at a time during the call and not before."""
    if where.device().type == "cuda":
        call()  # what libraries keep from their first call on
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        where.wait()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    most = now = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


def peaks(
    name: str, share: float = 1.0, steps: int = STEPS, bounded: bool = False, emulated: bool = False
) -> dict[str, int]:
    """Of each contender, or those alone that have a bound, on a `share` of the batch.

    emulated: bf16 also where this processor has none, in two steps, which hold as much as ten.
    """
    model, x, y = case(name)
    rows = max(1, int(share * len(x)))
    x, y = x[:rows], y[:rows]
    x_0 = fastsal.functional.random_start(x, EPS, SEED)

    def ours(steps: int = steps, **how: Any) -> int:
        attack = fastsal.PGD(model, EPS, ALPHA, steps, **how)
        return peak(lambda: attack(x, y, seed=SEED))

    found = {LOOP: peak(lambda: plain_attack.pgd(model, x, y, x_0, EPS, ALPHA, steps)), FP32: ours(precision="fp32")}
    if where.native_bf16()[0]:
        found[BF16] = ours(precision="bf16")
    elif emulated:
        found[BF16] = ours(min(steps, 2), precision="bf16")
    if bounded:
        return found
    found[PLAIN] = ours(fast=False)
    for contender, lever in WITHOUT.items():
        found[contender] = ours(precision="fp32", fast=Levers(**{lever: False}))
    return found


def broken(name: str, found: dict[str, int]) -> list[str]:
    """The bounds that were not kept."""
    shares = {contender: found[contender] / found[LOOP] for contender in BOUNDS if contender in found}
    return [
        f"{name}: {contender} at {share:.3f} of the {LOOP}, expected at most {BOUNDS[contender]}"
        for contender, share in shares.items()
        if share > BOUNDS[contender]
    ]


def report(measured: dict[str, dict[str, int]], started: str, steps: int) -> str:
    lines = [f"| of the {LOOP} | bound | {' | '.join(measured)} |", "|---|---:|" + "---:|" * len(measured)]
    loops = [f"{found[LOOP] / 2**20:.1f} MiB" for found in measured.values()]
    lines.append(f"| {LOOP} | | {' | '.join(loops)} |")
    for contender in (PLAIN, FP32, *WITHOUT, BF16):
        shares = [f"{found[contender] / found[LOOP]:.3f}" for found in measured.values() if contender in found]
        bound = f"{BOUNDS[contender]}" if contender in BOUNDS else ""
        if shares:
            lines.append(f"| {contender} | {bound} | {' | '.join(shares)} |")
    notes = f"Machine: {started}. PGD-{steps}; peaks of allocated tensor bytes in the call."
    if not where.native_bf16()[0]:
        emulated = any(BF16 in found for found in measured.values())
        notes += f" No bf16 here: {where.native_bf16()[1]}{'; emulated, in two steps' if emulated else ''}."
    return notes + "\n\n" + "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where.add_option(parser.add_argument)
    parser.add_argument("--steps", type=int, default=STEPS, help="of the attack (default %(default)s)")
    parser.add_argument("--write", type=Path, help="a markdown file whose marked section is replaced")
    parser.add_argument("--bf16", action="store_true", help="bf16 also where it is emulated, which takes minutes")
    options = parser.parse_args()
    where.choose(options.device)
    started, measured, wrong = machine(), dict[str, dict[str, int]](), list[str]()
    for name in NETS:
        found = measured[name] = peaks(name, steps=options.steps, emulated=options.bf16)
        wrong += broken(name, found)
        shares = [f"  {contender}: {bytes_ / found[LOOP]:.3f}" for contender, bytes_ in found.items()]
        print(name, *shares, sep="\n", flush=True)
    text = report(measured, started, options.steps)
    print(f"\n{text}")
    if options.write:
        marked.write(where.section("memory"), text, options.write)
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
