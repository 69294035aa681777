"""The command line: ``fastsal train``, ``fastsal evaluate``, ``fastsal doctor``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastsal import data, doctor, models, plots, runs
from fastsal.attacks import PGD
from fastsal.data.augment import parse
from fastsal.data.sources import lasting
from fastsal.evaluate import evaluate
from fastsal.methods import METHODS
from fastsal.train import TrainingDiverged, TrainingStopped, train
from fastsal.version import __version__

INTERRUPTED = 130  # what a shell expects after Ctrl-C
EXAMPLE_IMAGES = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0 done, 1 failed, 2 wrong arguments, 130 interrupted."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        return code
    except KeyboardInterrupt:
        print("fastsal: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, TypeError, ImportError, OSError) as error:
        print(f"fastsal: error: {error}", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:  # torch's own, such as a device without memory left: the first line
        first = str(error).strip().partition("\n")[0]
        print(f"fastsal: error: {type(error).__name__}: {first}", file=sys.stderr)
        return 1


# ---------------------------------------------------------------------------------------------- train


def _train(args: argparse.Namespace) -> int:
    folder = Path(args.out)
    if (folder / runs.CONFIG).exists() and not args.overwrite:
        raise ValueError(f"--out: expected a folder without a run, got {folder}; pass --overwrite to replace it")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out: expected a folder, got the file {folder}")
    dataset = data.load(args.data)
    shape = _shape(dataset)
    torch.manual_seed(args.seed)
    model = runs.new_model(args.model, shape).to(args.device)
    print(
        f"{args.model} ({sum(p.numel() for p in model.parameters()):,} parameters) on {dataset.name}: "
        f"{len(dataset.train):,} training images of {'x'.join(map(str, dataset.image_shape))}, "
        f"{dataset.num_classes} classes; "
        f"method {args.method}, {args.norm} eps {args.eps:.6g}",
        flush=True,
    )
    loader = dataset.train.loader(
        args.batch_size, shuffle=True, augment=args.augment, device=args.device, seed=args.seed
    )
    test = None if dataset.test is None else dataset.test.loader(args.batch_size, device=args.device)
    folder.mkdir(parents=True, exist_ok=True)
    runs.clear(folder)  # of an earlier run, which --overwrite gave up
    config = {key: value for key, value in vars(args).items() if key not in ("run", "command", "overwrite")}
    config |= {"data": lasting(args.data), "shape": shape, "completed": False}
    runs.write_config(folder, config)

    failed: TrainingDiverged | TrainingStopped | None = None
    try:
        result = train(
            model,
            loader,
            method=args.method,
            eps=args.eps,
            alpha=args.alpha,
            steps=args.steps,
            c=args.c,
            norm=args.norm,
            warmup_epochs=args.warmup_epochs,
            natural_weight=args.natural_weight,
            beta=args.beta,
            tau=args.tau,
            epochs=args.epochs,
            lr=args.lr,
            weight_decay=args.weight_decay,
            eval_loader=test,
            seed=args.seed,
            progress=not args.quiet,
        )
    except (TrainingDiverged, TrainingStopped) as error:
        failed, result = error, error.result
    runs.write_model(folder, model)
    if result.history:
        runs.write_history(folder, result.history)
        _draw(plots.curves, result.history, folder / runs.CURVES, _title(config))
    if failed is not None:
        print(f"fastsal: error: {failed} (kept in {folder})", file=sys.stderr)
        return 1
    if result.interrupted:
        print(f"fastsal: interrupted; weights and history so far are in {folder}", file=sys.stderr)
        return INTERRUPTED
    runs.write_config(folder, config | {"completed": True})
    if test is None:
        print(f"{dataset.name} has no test split: nothing to evaluate. Written to {folder}")
        return 0
    _report(model, dataset, config, folder, args)
    return 0


def _shape(dataset: data.Dataset) -> dict[str, int]:
    """What a model has to know of the data."""
    channels, height, width = dataset.image_shape
    if height != width:
        raise ValueError(f"--data: expected square images, got {height} x {width}")
    if dataset.num_classes < 2:
        raise ValueError(f"--data: expected at least 2 classes, got {dataset.num_classes}")
    return {"num_classes": dataset.num_classes, "in_channels": channels, "size": height}


def _title(config: dict[str, Any]) -> str:
    cut = f", c = {config['c']:g}" if config["method"] == "sense" else ""
    where = f"{config['model']} on {Path(config['data']).name}"
    return f"{config['method']}{cut}, {config['norm']} eps = {config['eps']:.4g}, {where}"


def _draw(picture: Callable[..., None], *arguments: Any) -> None:
    """A picture, or one line that says why not: matplotlib is optional and comes after the work is done."""
    try:
        picture(*arguments)
    except ImportError as error:
        print(f"fastsal: no picture: {error}", file=sys.stderr)


def _report(
    model: nn.Module,
    dataset: data.Dataset,
    config: dict[str, Any],
    folder: Path,
    args: argparse.Namespace,
    other: Sequence[str] = (),
) -> None:
    """Evaluates on the test split, prints the table, writes report.json and examples.png.

    `other`: the settings that are not the run's own, in words fit for file names; they go into the names.
    """
    if dataset.test is None:
        raise ValueError(f"--data: expected a data set with a test split, got {dataset.name}")
    device = next(model.parameters()).device
    model.eval()
    report = evaluate(
        model,
        dataset.test.loader(args.batch_size, device=device),
        config["eps"],
        norm=config["norm"],
        steps=config["eval_steps"],
        progress=not args.quiet,
    )
    report_path, examples_path = (runs.named(folder / name, other) for name in (runs.REPORT, runs.EXAMPLES))
    report.save(report_path)
    print(report.table())
    count = min(EXAMPLE_IMAGES, len(dataset.test))
    x, y = next(iter(dataset.test.loader(count, device=device)))
    steps = config["eval_steps"]
    x_adv = PGD(model, config["eps"], 2.5 * config["eps"] / steps, steps, config["norm"])(x, y, seed=0)
    with torch.no_grad():
        clean, adversarial = model(x), model(x_adv)
    title = f"Examples under PGD-{steps}: {_title(config)}"
    _draw(plots.examples, x, x_adv, y, clean, adversarial, dataset.class_names, examples_path, title)
    if other:
        print(f"not the settings of the run ({', '.join(other)}): its {runs.REPORT} stays, this is {report_path.name}")
    print(f"written to {folder}: " + ", ".join(sorted(path.name for path in folder.iterdir())))


# ------------------------------------------------------------------------------------ evaluate, doctor


def _evaluate(args: argparse.Namespace) -> int:
    folder = Path(args.run_folder)
    config = runs.read_config(folder)
    model = runs.read_model(folder, config).to(args.device)
    if not config.get("completed", True):
        print(f"fastsal: warning: the training of {folder} did not end; this is a partial run", file=sys.stderr)
    other = []
    for name in ("eps", "norm", "data", "eval_steps"):
        given = getattr(args, name)
        if name == "data" and given is not None:
            given, config[name] = lasting(given), lasting(config[name])
        if given is not None and given != config[name]:
            config[name] = given
            word = Path(given).stem if name == "data" else f"{given:.6g}" if name == "eps" else given
            other.append(f"{name.replace('_', '-')}-{word}")
    dataset = data.load(config["data"])
    if _shape(dataset) != config["shape"]:
        raise ValueError(f"--data: expected what the model was trained for, {config['shape']}, got {_shape(dataset)}")
    _report(model, dataset, config, folder, args, other)
    return 0


def _doctor(args: argparse.Namespace) -> int:
    return 0 if doctor.examine(sys.stdout, speed=not args.no_speed) else 1


# --------------------------------------------------------------------------------------------- parser


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastsal", description="Sensible adversarial training (SENSE), PGD and their evaluation."
    )
    parser.add_argument("--version", action="version", version=f"fastsal {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shows: dict[str, Any] = {"formatter_class": argparse.ArgumentDefaultsHelpFormatter}

    run = commands.add_parser(
        "train", help="train a robust classifier, evaluate it, draw its pictures, all into one folder", **shows
    )
    run.set_defaults(run=_train)
    run.add_argument("--data", default="fashion-mnist-mini", help=f"one of {', '.join(data.names())}, or a path")
    run.add_argument("--model", type=_model, default="small-cnn", help=f"one of {', '.join(models.names())}")
    run.add_argument("--method", default="sense", choices=list(METHODS), help="how the training loss is made")
    run.add_argument("--out", default="runs/latest", help="folder for everything that is written")
    run.add_argument("--overwrite", action="store_true", help="replace a run that is already in --out")
    run.add_argument(
        "--eps", type=_positive, default=8 / 255, help="radius, in units of pixels in [0, 1], such as 0.1 or 8/255"
    )
    run.add_argument(
        "--alpha", type=_positive, default=None, help="attack step, in units of pixels; None is 1.875 eps / steps"
    )
    run.add_argument("--steps", type=_count, default=10, help="attack steps in training, a number >= 1")
    run.add_argument("--norm", default="Linf", choices=["Linf", "L2", "L1"], help="norm of the ball")
    run.add_argument("--c", type=_probability, default=0.5, help="threshold of SENSE, a probability in [0, 1]")
    run.add_argument("--warmup-epochs", type=_whole, default=1, help="SENSE epochs without truncation, a number >= 0")
    run.add_argument(
        "--natural-weight", type=_positive, default=0.0, help="weight >= 0 of the clean loss beside the adversarial one"
    )
    run.add_argument("--beta", type=_positive, default=6.0, help="weight >= 0 of the divergence in TRADES and MART")
    run.add_argument("--tau", type=_whole, default=0, help="steps of FAT after the first misclassification, >= 0")
    run.add_argument("--epochs", type=_count, default=10, help="passes over the training images, a number >= 1")
    run.add_argument("--lr", type=_positive, default=0.05, help="peak learning rate of SGD with momentum 0.9")
    run.add_argument("--weight-decay", type=_positive, default=5e-4, help="L2 penalty of SGD, per step")
    run.add_argument(
        "--augment", type=_augment, default=None, help="comma-separated: crop (reflect-pad 4 pixels), flip (horizontal)"
    )
    run.add_argument("--seed", type=_whole, default=0, help="number >= 0 that fixes weights, order, noise and dropout")

    again = commands.add_parser(
        "evaluate", help="evaluate a trained run again; other settings get a report of their own", **shows
    )
    again.set_defaults(run=_evaluate)
    again.add_argument("run_folder", metavar="RUN", help="a folder written by fastsal train")
    again.add_argument("--data", default=None, help="other data: a name or a path (None: the run's own)")
    again.add_argument("--eps", type=_positive, default=None, help="radius in pixels in [0, 1] (None: the run's own)")
    again.add_argument("--norm", default=None, choices=["Linf", "L2", "L1"], help="norm (None: the run's own)")

    run.add_argument("--eval-steps", type=_count, default=runs.EVAL_STEPS, help="k of PGD-k in the evaluation")
    again.add_argument("--eval-steps", type=_count, default=None, help="k of PGD-k (None: the run's own)")

    for command in (run, again):
        command.add_argument("--batch-size", type=_count, default=128, help="images per batch")
        command.add_argument("--device", type=_device, default="cpu", help="torch device: cpu, cuda, cuda:1, ...")
        command.add_argument("--quiet", action="store_true", help="no progress bars")

    check = commands.add_parser("doctor", help="what runs where on this machine, checked against the reference")
    check.add_argument("--no-speed", action="store_true", help="check only: no bandwidths are measured")
    check.set_defaults(run=_doctor)
    return parser


def _number(text: str, kind: Callable[[str], Any], accept: Any, expected: str) -> Any:
    try:
        number = kind(text)
    except (ValueError, ZeroDivisionError):
        number = None
    if number is None or not accept(number):
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return number


def _fraction(text: str) -> float:
    """Of a decimal number, or of a fraction such as 8/255."""
    above, slash, below = text.partition("/")
    return float(above) / float(below) if slash else float(text)


def _positive(text: str) -> float:
    return float(_number(text, _fraction, lambda v: 0 <= v < float("inf"), "a finite number >= 0"))


def _probability(text: str) -> float:
    return float(_number(text, float, lambda v: 0 <= v <= 1, "a probability in [0, 1]"))


def _count(text: str) -> int:
    return int(_number(text, int, lambda v: v >= 1, "a whole number >= 1"))


def _whole(text: str) -> int:
    return int(_number(text, int, lambda v: 0 <= v < 2**63, "a whole number >= 0"))


def _model(text: str) -> str:
    with torch.device("meta"):  # checks the name without making weights
        return _checked(text, models.get)


def _augment(text: str) -> str:
    return _checked(text, parse)


def _device(text: str) -> str:
    try:
        kind = torch.empty(0, device=text).device.type
        reason = "it holds no values" if kind == "meta" else ""
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
    if reason:
        here = "cpu, cuda" if torch.cuda.is_available() else "cpu"
        raise argparse.ArgumentTypeError(f"expected a torch device of this machine ({here}), got {text!r}: {reason}")
    return text


def _checked(text: str, check: Callable[[str], Any]) -> str:
    try:
        check(text)
    except (ValueError, RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(str(error).partition("\n")[0]) from error
    return text


if __name__ == "__main__":
    sys.exit(main())
