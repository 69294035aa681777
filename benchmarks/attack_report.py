"""What each lever of the attack is worth, and which share of the machine's speed is reached.

``python -m benchmarks.attack_report`` prints markdown; ``--write FILE`` replaces the marked sections of that file;
``--part levers`` or ``--part rate`` makes one of the two, ``--net TEXT`` some of the nets, ``--turns 3`` is quick.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import fastsal
from benchmarks import marked, where
from benchmarks.alternation import TURNS, machine
from benchmarks.attack_levers import SENSE_CASE, kept_memory_alone, levers, with_compiler
from benchmarks.attack_rate import rate
from benchmarks.test_attacks import NETS

PARTS = ("levers", "rate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where.add_option(parser.add_argument)
    parser.add_argument("--turns", type=int, default=TURNS, help="alternations, at most (default %(default)s)")
    parser.add_argument("--part", choices=PARTS, help="one of the two (default: both)")
    parser.add_argument("--net", action="append", metavar="TEXT", help="nets whose name holds this; may be repeated")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile, which takes minutes")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads (default: torch's)")
    parser.add_argument("--write", type=Path, help="a markdown file whose marked sections are replaced")
    parser.add_argument("--kept-memory-alone", choices=(*NETS, SENSE_CASE), help=argparse.SUPPRESS)
    options = parser.parse_args()
    where.choose(options.device)
    torch.set_num_threads(options.threads)
    if options.kept_memory_alone:
        print(json.dumps(kept_memory_alone(options.kept_memory_alone, options.turns)))
        return
    names = [name for name in NETS if any(text.lower() in name.lower() for text in options.net or [""])]
    if not names:
        raise SystemExit(f"--net: expected parts of {', '.join(NETS)}, got {', '.join(options.net)}")
    parts: dict[str, Callable[[list[str], int], str]] = {
        "levers": partial(levers, compiling=with_compiler() and not options.no_compile),
        "rate": rate,
    }
    started = machine()
    warnings.filterwarnings("error", category=fastsal.FallbackWarning)  # a lever that is not on must not be timed
    for part in [options.part] if options.part else parts:
        text = f"Machine: {started}. {options.turns} turns at most.\n\n{parts[part](names, options.turns)}"
        print(f"\n{text}\n", flush=True)
        if options.write:
            marked.write(where.section(part), text, options.write)


if __name__ == "__main__":
    main()
