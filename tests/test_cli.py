"""The command line, as a shell user meets it: files, messages, exit codes."""

from __future__ import annotations

import csv
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastsal
from fastsal import cli, runs
from fastsal.cli import main
from fastsal.methods import METHODS

FILES = {"config.json", "history.csv", "report.json", "model.pt", "curves.png", "examples.png"}
ATTACKS = ["FGSM", "PGD-3", "margin-T", "worst"]
SMALL = ["--model", "tiny-cnn-16k", "--eps", "0.05", "--steps", "2", "--batch-size", "50", "--eval-steps", "3"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Quicker for nets this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def data(room: Path) -> Path:
    """200 training and 30 test images of 16x16, cut out of Fashion-MNIST."""
    full = fastsal.data.load("fashion-mnist-mini")
    path = room / "cut.npz"
    np.savez(
        path,
        x_train=full.train.images[:200, 0, 6:22, 6:22].numpy(),
        y_train=full.train.labels[:200].numpy(),
        x_test=full.test.images[:30, 0, 6:22, 6:22].numpy(),
        y_test=full.test.labels[:30].numpy(),
        class_names=np.array(full.class_names),
    )
    return path


@pytest.fixture(scope="module")
def untested(room: Path, data: Path) -> Path:
    """The same without a test split."""
    arrays = np.load(data)
    path = room / "untested.npz"
    np.savez(path, images=arrays["x_train"], labels=arrays["y_train"], class_names=arrays["class_names"])
    return path


@pytest.fixture(scope="module")
def finished(room: Path, data: Path) -> Path:
    """A run of two epochs; tests that change it take a copy."""
    pytest.importorskip("matplotlib")
    out = room / "finished"
    assert main(["train", "--data", str(data), *SMALL, "--epochs", "2", "--out", str(out), "--quiet"]) == 0
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def report(folder: Path, name: str = "report.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    return found


def one_line(text: str) -> str:
    """The only line of stderr; a traceback would be more."""
    (line,) = text.strip().splitlines()
    assert line.startswith("fastsal: ")
    return line


# -------------------------------------------------------------------------------------------------- train


def test_train_writes_everything_and_nothing_else(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == FILES
    config = json.loads((finished / "config.json").read_text(encoding="utf-8"))
    assert config["method"] == "sense" and config["eps"] == 0.05 and config["c"] == 0.5 and config["seed"] == 0
    assert config["completed"] is True
    assert config["shape"] == {"num_classes": 10, "in_channels": 1, "size": 16}
    assert {"fastsal", "torch", "python"} <= config["versions"].keys()


def test_history_has_one_line_per_epoch_with_accuracies_and_live_shares(finished: Path) -> None:
    lines = rows(finished)
    assert [line["epoch"] for line in lines] == ["1", "2"]
    wanted = {"loss", "train_accuracy", "natural_accuracy", "robust_accuracy", "live_share", "images_per_second", "lr"}
    for line in lines:
        assert wanted | {"live_share_step_1", "live_share_step_2"} <= line.keys()
        assert all(0 <= float(line[name]) <= 1 for name in line if name.endswith("accuracy") or "share" in name)


def test_report_has_the_accuracies(finished: Path) -> None:
    found = report(finished)
    assert list(found["robust_accuracy"]) == ATTACKS
    assert (found["eps"], found["norm"], found["samples"]) == (0.05, "Linf", 30)


def test_model_pt_is_plain_weights_of_the_trained_model(finished: Path, data: Path) -> None:
    model = fastsal.models.get("tiny-cnn-16k", in_channels=1, image_size=16)
    model.load_state_dict(torch.load(finished / "model.pt", weights_only=True))
    again = fastsal.evaluate(model, fastsal.data.load(data).test.loader(50), 0.05, steps=3, progress=False)
    assert again.natural_accuracy == report(finished)["natural_accuracy"]
    assert again.robust_accuracy == report(finished)["robust_accuracy"]


@pytest.mark.parametrize("name", ["curves.png", "examples.png"])
def test_pictures_are_png_and_not_blank(finished: Path, name: str) -> None:
    image = pytest.importorskip("matplotlib.image")
    assert (finished / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = image.imread(finished / name)
    assert pixels.shape[0] > 300 and pixels.shape[1] > 1000
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 50


def test_train_says_what_it_does_and_shows_the_table(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--data", str(data), *SMALL, "--epochs", "1", "--out", str(tmp_path / "new" / "run")]) == 0
    shown = capsys.readouterr()
    assert "tiny-cnn-16k" in shown.out and "200 training images of 1x16x16, 10 classes" in shown.out
    for attack in ["natural", *ATTACKS]:
        assert re.search(rf"^{attack} +[\d.]+%", shown.out, re.MULTILINE)
    assert "not AutoAttack" in shown.out and "epoch 1/1" in shown.err


def test_the_same_command_gives_the_same_weights(finished: Path, data: Path, tmp_path: Path) -> None:
    torch.manual_seed(12345)  # of no consequence
    for seed, equal in (("0", True), ("1", False)):
        out = tmp_path / seed
        assert main(["train", "--data", str(data), *SMALL, "--epochs", "2", "--out", str(out), "--quiet",
                     "--seed", seed]) == 0  # fmt: skip
        pair = [torch.load(folder / "model.pt", weights_only=True) for folder in (finished, out)]
        assert all(torch.equal(pair[0][name], pair[1][name]) for name in pair[0]) == equal


def test_every_option_reaches_the_trainer(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def fake(model: Any, loader: Any, **options: Any) -> fastsal.TrainResult:
        seen.update(options, loader=loader)
        return fastsal.TrainResult(model)

    monkeypatch.setattr(cli, "train", fake)
    options: dict[str, Any] = {
        "method": "pgd", "eps": 0.3, "alpha": 0.02, "steps": 7, "c": 0.2, "norm": "L2", "warmup_epochs": 3,
        "natural_weight": 0.25, "epochs": 9, "lr": 0.125, "weight_decay": 0.5, "seed": 11,
    }  # fmt: skip
    arguments = [part for name, value in options.items() for part in ("--" + name.replace("_", "-"), str(value))]
    assert main(["train", "--data", str(data), *SMALL, *arguments, "--batch-size", "33", "--augment", "crop,flip",
                 "--quiet", "--out", str(tmp_path)]) == 0  # fmt: skip
    assert {name: seen[name] for name in options} == options
    assert seen["loader"].batch_size == 33 and seen["loader"].seed == 11 and seen["progress"] is False
    assert len(seen["eval_loader"]) == 1
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert {name: config[name] for name in options} == options and config["augment"] == "crop,flip"


def test_a_run_is_not_overwritten_unless_told_so(run: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    command = ["train", "--data", str(data), *SMALL, "--epochs", "1", "--out", str(run), "--quiet"]
    assert main(command) == 1
    assert "--overwrite" in one_line(capsys.readouterr().err)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    assert main([*command, "--overwrite", "--method", "natural"]) == 0
    assert {path.name for path in run.iterdir()} == FILES
    assert len(rows(run)) == 1
    assert json.loads((run / "config.json").read_text(encoding="utf-8"))["method"] == "natural"


@pytest.mark.parametrize(
    "wrong", [["--data", "nowhere.npz"], ["--device", "toaster"], ["--augment", "spin"], ["--model", "mystery"]]
)
def test_an_error_before_training_leaves_the_earlier_run_in_place(run: Path, data: Path, wrong: list[str]) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    try:
        code: Any = main(["train", "--data", str(data), *wrong, "--out", str(run), "--overwrite"])
    except SystemExit as error:
        code = error.code
    assert code in (1, 2)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_data_set_without_a_test_split_trains_and_says_so(
    run: Path, untested: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Into the folder of a run that had one: its report and examples must not stay beside the new weights."""
    command = ["train", "--data", str(untested), *SMALL, "--epochs", "1", "--out", str(run), "--quiet", "--overwrite"]
    assert main(command) == 0
    assert "no test split" in capsys.readouterr().out
    assert {path.name for path in run.iterdir()} == {"config.json", "history.csv", "model.pt", "curves.png"}
    assert "natural_accuracy" not in rows(run)[0]
    assert main(["evaluate", str(run)]) == 1
    assert "test split" in one_line(capsys.readouterr().err)


def test_without_matplotlib_all_but_the_pictures_is_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["train", "--data", str(data), *SMALL, "--epochs", "1", "--out", str(tmp_path), "--quiet"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == FILES - {"curves.png", "examples.png"}
    assert capsys.readouterr().err.count("pip install matplotlib") == 2


# ---------------------------------------------------------------------------------- interrupted, diverged


class Stopping:
    """A training method that trains naturally, and from call `calls` on does something else."""

    def __init__(self, calls: int, what: BaseException | float) -> None:
        self.calls, self.what = calls, what

    def __call__(self, model: Any, x: Any, y: Any, settings: Any, epoch: int, seed: int) -> Any:
        self.calls -= 1
        if self.calls <= 0 and isinstance(self.what, BaseException):
            raise self.what
        outer = METHODS["natural"](model, x, y, settings, epoch, seed)
        return type(outer)(outer.loss * self.what, outer.logits, None) if self.calls <= 0 else outer


@pytest.mark.parametrize(("calls", "epochs"), [(1, 0), (3, 1), (6, 2)], ids=["at once", "first epoch", "second epoch"])
def test_ctrl_c_keeps_what_was_done(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    calls: int,
    epochs: int,
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(METHODS, "sense", Stopping(calls, KeyboardInterrupt()))
    assert main(["train", "--data", str(data), *SMALL, "--epochs", "3", "--out", str(tmp_path), "--quiet"]) == 130
    assert "interrupted" in one_line(capsys.readouterr().err)
    kept = {"config.json", "model.pt"} | ({"history.csv", "curves.png"} if epochs else set())
    assert {path.name for path in tmp_path.iterdir()} == kept
    assert (len(rows(tmp_path)) if epochs else 0) == epochs
    assert main(["evaluate", str(tmp_path), "--quiet"]) == 0  # what is kept can be used
    assert "a partial run" in one_line(capsys.readouterr().err)
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["completed"] is False


def test_ctrl_c_in_the_evaluation_keeps_the_training(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "evaluate", interrupted)
    assert main(["train", "--data", str(data), *SMALL, "--epochs", "1", "--out", str(tmp_path), "--quiet"]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert {"config.json", "history.csv", "model.pt"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_real_sigint_ends_a_real_process_with_130(data: Path, tmp_path: Path) -> None:
    command = ["train", "--data", str(data), *SMALL, "--epochs", "100000", "--out", str(tmp_path / "run")]
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "  # a background job ignores it
        f"from fastsal.cli import main; sys.exit(main({command!r}))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )
    assert process.stderr is not None
    try:
        said = b""
        while b"epoch 2/" not in said:  # in the middle of the training
            piece = os.read(process.stderr.fileno(), 65536)
            assert piece, said.decode()
            said += piece
        process.send_signal(signal.SIGINT)
        last = process.communicate(timeout=120)[1].decode()
    finally:
        process.kill()
    assert process.returncode == 130, last
    assert "interrupted; weights and history so far are in" in last and "Traceback" not in last
    assert {"config.json", "history.csv", "model.pt"} <= {path.name for path in (tmp_path / "run").iterdir()}
    assert len(rows(tmp_path / "run")) >= 1


def test_a_loss_that_is_not_finite_exits_1_says_where_and_keeps_files(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(METHODS, "sense", Stopping(6, float("nan")))
    assert main(["train", "--data", str(data), *SMALL, "--epochs", "3", "--out", str(tmp_path), "--quiet"]) == 1
    line = one_line(capsys.readouterr().err)
    assert "the loss is nan in epoch 2, batch 2" in line and str(tmp_path) in line
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "history.csv", "model.pt", "curves.png"}
    assert len(rows(tmp_path)) == 2
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(bool(torch.isfinite(value).all()) for value in weights.values())


def test_a_learning_rate_far_too_large_is_such_a_case(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--data", str(data), *SMALL, "--epochs", "2", "--lr", "1e30", "--out", str(tmp_path),
                 "--quiet"]) == 1  # fmt: skip
    assert "learning rate" in capsys.readouterr().err
    assert (tmp_path / "model.pt").is_file()


# ----------------------------------------------------------------------------------------------- evaluate


def test_evaluate_reproduces_the_report(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = report(run)
    for name in ("report.json", "examples.png"):
        (run / name).unlink()
    assert main(["evaluate", str(run), "--eval-steps", "3", "--batch-size", "7", "--quiet"]) == 0
    assert report(run) == before
    assert {path.name for path in run.iterdir()} == FILES
    assert f"{before['natural_accuracy']:.2%}" in capsys.readouterr().out


def test_evaluate_of_other_settings_leaves_the_report_of_the_run(
    run: Path, data: Path, room: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = dict(np.load(data))
    arrays["x_test"], arrays["y_test"] = arrays["x_test"][:12], arrays["y_test"][:12]
    other = room / "other.npz"
    np.savez(other, **arrays)
    command = ["evaluate", str(run), "--eval-steps", "2", "--quiet"]
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert main([*command, "--eps", "0"]) == 0
    found = report(run, "report-eps-0-eval-steps-2.json")
    assert set(found["robust_accuracy"].values()) == {found["natural_accuracy"]}
    assert main([*command, "--norm", "L2", "--eps", "0.5", "--data", str(other)]) == 0
    found = report(run, "report-eps-0.5-norm-L2-data-other-eval-steps-2.json")
    assert (found["norm"], found["eps"], found["samples"]) == ("L2", 0.5, 12)
    said = capsys.readouterr().out
    assert "not the settings of the run (eps-0, eval-steps-2): its report.json stays" in said
    assert before.items() <= {path.name: path.read_bytes() for path in run.iterdir()}.items()
    assert {path.name for path in run.glob("examples-*")} == {
        "examples-eps-0-eval-steps-2.png",
        "examples-eps-0.5-norm-L2-data-other-eval-steps-2.png",
    }


def test_evaluate_with_the_settings_of_the_run_spelled_out_is_its_report(run: Path, data: Path) -> None:
    before = report(run)
    (run / "report.json").unlink()
    again = os.path.relpath(data)
    assert main(["evaluate", str(run), "--eps", "0.05", "--norm", "Linf", "--data", again, "--quiet"]) == 0
    assert report(run) == before
    assert {path.name for path in run.iterdir()} == FILES


def test_overwriting_a_run_removes_its_other_reports(run: Path, data: Path) -> None:
    (run / "report-eps-0.2.json").touch()
    (run / "examples-eps-0.2.png").touch()
    command = ["train", "--data", str(data), *SMALL, "--method", "natural", "--epochs", "1", "--out", str(run)]
    assert main([*command, "--quiet", "--overwrite"]) == 0
    assert {path.name for path in run.iterdir()} == FILES


def test_a_run_in_a_relative_place_can_be_evaluated_from_elsewhere(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.parent)
    command = ["train", "--data", data.name, *SMALL, "--method", "natural", "--epochs", "1", "--out", str(tmp_path)]
    assert main([*command, "--quiet"]) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", str(tmp_path), "--quiet"]) == 0


def test_compare_takes_a_run_only_if_it_ended_and_its_report_is_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).resolve().parents[1]
    if not (root / "benchmarks").is_dir():
        pytest.skip("tested without the repository around it: there is no benchmarks/ beside tests/")
    monkeypatch.syspath_prepend(str(root))
    from benchmarks import compare

    wanted = {"eps": "0.1", "seed": "0"}
    config = {"eps": 0.1, "seed": 0, "norm": "Linf"}
    good = {"eps": 0.1, "norm": "Linf", "samples": 2000, "attacks": dict.fromkeys(["FGSM", "PGD-40", "margin-T"])}

    def same(config: dict[str, Any], found: dict[str, Any]) -> bool:
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "report.json").write_text(json.dumps(found))
        return compare._same(tmp_path, wanted)

    assert same(config, good)  # made before there was the mark
    assert same(config | {"completed": True}, good)
    assert not same(config | {"completed": False}, good)
    assert not same(config | {"seed": 1}, good)
    for fault in ({"eps": 0.2}, {"norm": "L2"}, {"samples": 12}, {"attacks": {"FGSM": {}, "PGD-3": {}}}):
        assert not same(config, good | fault)
    (tmp_path / "report.json").unlink()
    assert not compare._same(tmp_path, wanted)


def test_evaluate_refuses_data_of_another_shape(
    run: Path, data: Path, room: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = dict(np.load(data))
    wider = room / "wider.npz"
    np.savez(wider, **arrays | {name: np.repeat(arrays[name], 2, 2) for name in ("x_train", "x_test")})
    assert main(["evaluate", str(run), "--data", "fashion-mnist-mini"]) == 1
    assert "'size': 16" in one_line(capsys.readouterr().err)
    assert main(["evaluate", str(run), "--data", str(wider)]) == 1
    assert "square" in one_line(capsys.readouterr().err)


def garbage(run: Path) -> None:
    (run / "model.pt").write_bytes(b"\x00nothing of the kind" * 50)


def truncated(run: Path) -> None:
    (run / "model.pt").write_bytes((run / "model.pt").read_bytes()[:5000])


def empty(run: Path) -> None:
    (run / "model.pt").write_bytes(b"")


def another_model(run: Path) -> None:
    runs.write_model(run, fastsal.models.get("tiny-cnn-62k", in_channels=1, image_size=16))


def no_config(run: Path) -> None:
    (run / "config.json").unlink()


def no_model(run: Path) -> None:
    (run / "model.pt").unlink()


def no_json(run: Path) -> None:
    (run / "config.json").write_text("{not json", encoding="utf-8")


def no_text(run: Path) -> None:
    (run / "config.json").write_bytes(b"\xff\xfe\x00\x80")


def other_json(run: Path) -> None:
    (run / "config.json").write_text('{"name": "something else"}', encoding="utf-8")


def edited(name: str, value: Any) -> Any:
    def edit(run: Path) -> None:
        config = json.loads((run / "config.json").read_text(encoding="utf-8"))
        (run / "config.json").write_text(json.dumps(config | {name: value}), encoding="utf-8")

    return edit


def a_list(run: Path) -> None:
    (run / "config.json").write_text("[]", encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (garbage, r"model\.pt: expected weights of tiny-cnn-16k"),
        (truncated, r"model\.pt: expected weights of tiny-cnn-16k"),
        (empty, r"model\.pt: expected weights of tiny-cnn-16k"),
        (another_model, r"model\.pt: expected weights of tiny-cnn-16k"),
        (no_model, r"expected trained weights at .*model\.pt"),
        (no_config, r"expected a run.*config\.json"),
        (no_json, r"config\.json: expected JSON"),
        (no_text, r"config\.json: expected JSON"),
        (other_json, r"config\.json: expected the settings of a run"),
        (a_list, r"config\.json: expected the settings of a run"),
        (edited("eps", "wide"), r"config\.json: eps: expected a finite number >= 0, got 'wide'"),
        (edited("norm", ["L7"]), r"config\.json: norm: expected Linf, L2 or L1, got \['L7'\]"),
        (edited("model", "mystery"), r"config\.json: model, shape: name: expected one of .*; got 'mystery'"),
        (edited("shape", {"size": 16}), r"config\.json: shape: expected an object of in_channels, num_classes, size"),
        (edited("eval_steps", 0), r"config\.json: eval_steps: expected a whole number >= 1, got 0"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_folder_that_is_no_run_or_a_damaged_one_is_told_in_one_line(
    run: Path, damage: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run)
    assert main(["evaluate", str(run)]) == 1
    assert re.search(message, one_line(capsys.readouterr().err))


def test_a_folder_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in one_line(capsys.readouterr().err)


def test_weights_that_would_run_code_do_not(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "gone off",)

    (run / "model.pt").write_bytes(pickle.dumps(Bomb(), protocol=2))
    assert main(["evaluate", str(run)]) == 1
    torch.save(Bomb(), run / "model.pt")
    assert main(["evaluate", str(run)]) == 1
    assert not (tmp_path / "gone off").exists()
    assert "Traceback" not in capsys.readouterr().err


# -------------------------------------------------------------------------------------- arguments and help


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["paint"], "paint"),
        (["train", "--eps", "-1"], "--eps: expected a finite number >= 0, got '-1'"),
        (["train", "--eps", "inf"], "--eps"),
        (["train", "--eps", "wide"], "--eps"),
        (["train", "--c", "1.5"], "--c: expected a probability in [0, 1], got '1.5'"),
        (["train", "--c", "nan"], "--c"),
        (["train", "--epochs", "0"], "--epochs: expected a whole number >= 1, got '0'"),
        (["train", "--epochs", "1.5"], "--epochs"),
        (["train", "--steps", "0"], "--steps"),
        (["train", "--batch-size", "0"], "--batch-size"),
        (["train", "--warmup-epochs", "-1"], "--warmup-epochs"),
        (["train", "--seed", "-1"], "--seed"),
        (["train", "--seed", str(2**63)], "--seed"),
        (["train", "--method", "hope"], "--method"),
        (["train", "--model", "smal-cnn"], "did you mean 'small-cnn'"),
        (["train", "--norm", "L7"], "--norm"),
        (["train", "--augment", "spin"], "--augment"),
        (["train", "--device", "toaster"], "--device: expected a torch device of this machine (cpu"),
        (["train", "--device", "meta"], "--device: expected a torch device of this machine (cpu"),
        (["train", "--eps", "8/0"], "--eps: expected a finite number >= 0, got '8/0'"),
        (["train", "--no-such-option"], "--no-such-option"),
        (["evaluate"], "RUN"),
        (["evaluate", "here", "--eval-steps", "x"], "--eval-steps"),
    ],
    ids=" ".join,
)
def test_wrong_arguments_exit_2_and_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*arguments, *(["--out", str(tmp_path / "out")] if arguments[:1] == ["train"] else [])])
    assert caught.value.code == 2
    shown = capsys.readouterr()
    assert message in shown.err and "Traceback" not in shown.err and shown.out == ""
    assert not (tmp_path / "out").exists()


def test_missing_data_is_one_line_that_says_how_to_get_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["train", "--data", str(tmp_path / "nowhere.npz"), "--out", str(out)]) == 1
    shown = capsys.readouterr()
    line = one_line(shown.err)
    assert "nowhere.npz" in line and "fashion-mnist-mini" in line and shown.out == ""
    assert not out.exists()


def test_out_that_is_a_file_is_told(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--data", str(data), *SMALL, "--out", str(data), "--quiet"]) == 1
    assert "--out: expected a folder, got the file" in one_line(capsys.readouterr().err)


def test_a_data_set_of_one_class_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "one.npz", images=np.zeros((4, 16, 16), np.uint8), labels=np.zeros(4, np.int64))
    assert main(["train", "--data", str(tmp_path / "one.npz"), *SMALL, "--out", str(tmp_path / "out")]) == 1
    assert "--data: expected at least 2 classes, got 1" in one_line(capsys.readouterr().err)


def test_an_error_of_the_device_is_one_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.\nMore about it")

    monkeypatch.setattr(cli, "train", full)
    assert main(["train", "--data", str(data), *SMALL, "--out", str(tmp_path), "--quiet"]) == 1
    assert "OutOfMemoryError: CUDA out of memory." in one_line(capsys.readouterr().err)


def test_a_radius_may_be_a_fraction() -> None:
    assert cli._positive("8/255") == 8 / 255


TRAIN_HELP = {
    "--data": "path",
    "--model": "small-cnn",
    "--method": "loss",
    "--out": "folder",
    "--overwrite": "replace",
    "--eps": "pixels in [0, 1]",
    "--alpha": "pixels",
    "--steps": "number",
    "--norm": "ball",
    "--c": "probability in [0, 1]",
    "--warmup-epochs": "epochs without truncation",
    "--natural-weight": "weight",
    "--beta": "weight",
    "--tau": "steps",
    "--epochs": "passes over the training images",
    "--lr": "learning rate",
    "--weight-decay": "per step",
    "--augment": "pixels",
    "--seed": "number",
    "--batch-size": "images per batch",
    "--eval-steps": "PGD-k",
    "--device": "torch device",
    "--quiet": "progress",
}
EVALUATE_HELP = {
    "RUN": "folder",
    "--data": "path",
    "--eps": "pixels in [0, 1]",
    "--norm": "norm",
    "--batch-size": "images per batch",
    "--eval-steps": "PGD-k",
    "--device": "torch device",
    "--quiet": "progress",
}


@pytest.mark.parametrize(
    ("command", "expected"),
    [("train", TRAIN_HELP), ("evaluate", EVALUATE_HELP), ("doctor", {"--no-speed": "bandwidths"})],
    ids=lambda v: str(v)[:8],
)
def test_help_explains_every_option_with_its_unit(
    command: str, expected: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    explained = capsys.readouterr().out.partition("usage:")[2]
    explained = explained[explained.index("\n\n") :]  # past the usage
    entries = re.findall(r"^  (?:-h, )?(--[\w-]+|RUN)(.*?)(?=^  \S|\Z|^\S)", explained, re.MULTILINE | re.DOTALL)
    found = {name: " ".join(text.split()) for name, text in entries if name != "--help"}
    assert found.keys() == expected.keys()
    for name, unit in expected.items():
        assert unit in found[name], name


def test_help_lists_the_commands_and_version_tells_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    for argument, expected in (("--help", ("train", "evaluate", "doctor")), ("--version", (fastsal.__version__,))):
        with pytest.raises(SystemExit) as caught:
            main([argument])
        assert caught.value.code == 0
        shown = capsys.readouterr().out
        assert all(word in shown for word in expected)


def test_doctor_exits_0_where_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert "every operator agrees" in capsys.readouterr().out


def test_the_module_runs_as_a_program() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "fastsal.cli", "--version"], capture_output=True, text=True, check=True, timeout=120
    )
    assert shown.stdout.strip() == f"fastsal {fastsal.__version__}"
