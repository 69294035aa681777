"""``python -m benchmarks.checkpoint``: SmallCNN half-way through SENSE training, for the benchmarks that attack it.

Writes benchmarks/mid_training/: three epochs of six on the embedded images, at the full learning rate, c = 0.5. Weights
are stored in fp16, which the benchmarks read into fp32: what they attack is the rounded model.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from benchmarks import trained
from fastsal import runs

FOLDER = Path(__file__).with_name("mid_training")
EPOCHS, LR = 3, 0.05


def model() -> nn.Module:
    return runs.read_model(FOLDER, runs.read_config(FOLDER)).eval()


def main() -> None:
    result = trained.train("sense", EPOCHS, lr=LR)
    if result.interrupted:
        raise SystemExit("interrupted: nothing was written")
    result.model.half()
    trained.write(FOLDER, result, {**trained.settings("sense", EPOCHS), "lr": LR})
    last = result.history[-1]
    shares = ", ".join(f"{share:.2f}" for share in last["live_share_by_step"])
    print(f"written to {FOLDER}: accuracy at the start {last['start_accuracy']:.1%}, live share by step {shares}")


if __name__ == "__main__":
    main()
