"""The package as a whole: imports, the path without the extension, and what the build says."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastsal
from fastsal import backends

ROOT = Path(__file__).resolve().parents[1]

NO_EXTENSION = """
import sys, warnings
sys.modules["fastsal._C"] = None                   # importing it now raises ImportError
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    import torch, fastsal
    from fastsal import backends
    said = [str(w.message) for w in seen if "fastsal" in str(w.message)]
assert len(said) == 1 and "plain torch" in said[0], said
assert set(backends.bodies("cpu").values()) == {"reference"}
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
x, y = torch.rand(5, 3, 2, 2), torch.arange(5) % 3
with warnings.catch_warnings():
    warnings.simplefilter("error")                 # said once, not at every call
    x_adv = fastsal.SENSE(model, eps=0.1, c=0.1)(x, y, seed=7)
    assert fastsal.evaluate(model, [(x, y)], 0.1, progress=False).samples == 5
print(torch.sum(x_adv.double() * torch.arange(60.0).view(5, 3, 2, 2)).item())
"""


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


def test_works_without_the_extension_and_says_so_once() -> None:
    done = python(NO_EXTENSION)
    assert done.returncode == 0, done.stderr


def test_backend_variable_keeps_plain_torch_and_is_silent() -> None:
    code = "import fastsal.backends as b; print(sorted(set(b.bodies('cpu').values())))"
    done = python(code, FASTSAL_BACKEND="reference", PYTHONWARNINGS="error::UserWarning")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['reference']"


def test_unknown_backend_is_one_clear_error() -> None:
    done = python("import fastsal", FASTSAL_BACKEND="fortran")
    assert done.returncode != 0
    assert "got 'fortran'" in done.stderr


def test_the_extension_is_there_exactly_when_this_installation_has_one() -> None:
    expected = os.environ.get("FASTSAL_EXPECT_EXTENSION")
    if expected is None:
        pytest.skip("FASTSAL_EXPECT_EXTENSION is not set: only the wheel tests know what they installed")
    assert (backends.EXTENSION is not None) == (expected == "1"), backends.EXTENSION_MISSING


def test_kernels_are_installed_inside_the_package_only() -> None:
    assert importlib.util.find_spec("fastsal.kernels") is not None
    done = python("import fastsal, sys; print('kernels' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


def test_importing_changes_no_random_state_and_starts_no_plotting() -> None:
    done = python(
        "import torch; before = torch.get_rng_state()\n"
        "import fastsal, sys\n"
        "print(torch.equal(before, torch.get_rng_state()), 'matplotlib' in sys.modules, 'PIL' in sys.modules)"
    )
    assert done.stdout.split() == ["True", "False", "False"], done.stderr


def test_every_public_name_is_documented() -> None:
    for name in fastsal.__all__:
        if name != "__version__":
            assert getattr(fastsal, name).__doc__, name


@pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the repository: there is no setup.py beside tests/")
class TestBuild:
    CALL = (
        "import importlib.util, types\n"
        "import setuptools; setuptools.setup = lambda **k: None\n"
        "spec = importlib.util.spec_from_file_location('build_script', 'setup.py')\n"
        "script = importlib.util.module_from_spec(spec); spec.loader.exec_module(script)\n"
        "torch = types.SimpleNamespace(__version__='2.10', version=types.SimpleNamespace(cuda={cuda!r}))\n"
        "print(script.cuda_sources(torch))"
    )

    def say(self, cuda: str | None, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", self.CALL.format(cuda=cuda)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "FASTSAL_NO_EXT": "1", **environment},
            check=False,
        )

    def test_says_why_cuda_is_left_out(self) -> None:
        done = self.say(None)
        assert done.returncode == 0 and done.stdout.strip() == "[]", done.stderr
        assert "CUDA sources left out" in done.stderr and "without CUDA" in done.stderr

    def test_cuda_demanded_but_impossible_is_an_error(self) -> None:
        done = self.say(None, FASTSAL_CUDA="1")
        assert done.returncode != 0
        assert "FASTSAL_CUDA=1, but" in done.stderr

    def test_cuda_forbidden(self) -> None:
        assert "FASTSAL_CUDA=0" in self.say("13.0", FASTSAL_CUDA="0").stderr

    def test_version_is_written_once(self) -> None:
        done = subprocess.run(
            [sys.executable, "-c", "import runpy; print(runpy.run_path('fastsal/version.py')['__version__'])"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=True,
        )
        assert done.stdout.strip() == fastsal.__version__
