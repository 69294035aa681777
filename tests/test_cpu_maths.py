"""The exp, log and rotation of the compiled bodies against libm, and their 16-bit floats against torch."""

from __future__ import annotations

import ctypes
import math
import sys

import pytest
import torch
from compiled import build
from torch import Tensor

pytestmark = pytest.mark.usefixtures("one_thread")
each_half = pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])


@pytest.fixture(scope="module")
def maths(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if sys.platform == "win32":
        pytest.skip("the test compiles a shared library with the flags of gcc and clang")
    library = ctypes.CDLL(str(build("cpu_maths.cpp", tmp_path_factory.mktemp("maths"), "-shared", "-fPIC")))
    for name in ("worst_exp_f32", "worst_exp_f64", "worst_log_f64", "farthest_turn"):
        getattr(library, name).restype = ctypes.c_double
    return library


def measure(function: ctypes._CFuncPtr, values: Tensor) -> float:
    values = values.contiguous()
    return float(function(ctypes.c_void_p(values.data_ptr()), ctypes.c_int64(values.numel())))


def mapped(function: ctypes._CFuncPtr, values: Tensor, dtype: torch.dtype) -> Tensor:
    values, out = values.contiguous(), torch.empty(values.shape, dtype=dtype)
    function(ctypes.c_void_p(values.data_ptr()), ctypes.c_void_p(out.data_ptr()), ctypes.c_int64(values.numel()))
    return out


# ------------------------------------------------------------------------------------- exp, log, turn


def test_exp_in_fp32_is_within_two_units_in_the_last_place(maths: ctypes.CDLL) -> None:
    """A million floats of every magnitude down to -110: results from 1 to the smallest subnormal, and 0."""
    patterns = torch.linspace(0, torch.tensor(110.0).view(torch.int32).item(), 1_000_000, dtype=torch.float64)
    magnitudes = patterns.to(torch.int32).view(torch.float32)
    assert magnitudes[0] == 0 and 109 < magnitudes[-1] <= 110
    dense = torch.linspace(0, 105, 300_001)  # and evenly, where most softmax arguments lie
    assert measure(maths.worst_exp_f32, -torch.cat((magnitudes, dense))) < 2


def test_exp_in_fp64_is_within_two_units_in_the_last_place(maths: ctypes.CDLL) -> None:
    patterns = torch.linspace(0, torch.tensor(760.0).double().view(torch.int64).item(), 300_000, dtype=torch.float64)
    magnitudes = patterns.to(torch.int64).view(torch.float64)
    dense = torch.linspace(0, 750, 300_001, dtype=torch.float64)
    assert measure(maths.worst_exp_f64, -torch.cat((magnitudes, dense))) < 2


def test_log_is_within_two_units_in_the_last_place(maths: ctypes.CDLL) -> None:
    """All normal magnitudes, the sums of a softmax from 1 to 100,000, and the neighbourhood of 1."""
    info = torch.finfo(torch.float64)
    ends = (torch.tensor(info.tiny).double().view(torch.int64), torch.tensor(info.max).double().view(torch.int64))
    patterns = torch.linspace(*map(float, ends), 300_000, dtype=torch.float64).to(torch.int64).view(torch.float64)
    patterns = patterns[(patterns >= info.tiny) & patterns.isfinite()]
    sums = 1 + torch.linspace(0, 1, 300_001, dtype=torch.float64).pow(4) * 99_999
    near = 1 + torch.linspace(-1, 1, 200_001, dtype=torch.float64).pow(5)[1:-1] * 0.5
    uniform = (torch.arange(0, 2**23, 37, dtype=torch.float64) + 0.5) * 2.0**-23  # what an L2 start takes the log of
    assert measure(maths.worst_log_f64, torch.cat((patterns, sums, near, uniform))) < 2


def test_turn_is_within_two_units_of_one(maths: ctypes.CDLL) -> None:
    """Every angle that an L2 start can draw, a 31st of them at a time."""
    u = (torch.arange(0, 2**23, 31, dtype=torch.float64) + 0.5) * 2.0**-23
    ends = torch.tensor([0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1], dtype=torch.float64)
    assert measure(maths.farthest_turn, torch.cat((u, ends))) < 2 * torch.finfo(torch.float64).eps


def test_exp_and_log_at_their_ends(maths: ctypes.CDLL) -> None:
    for dtype, function in ((torch.float32, maths.exp_f32), (torch.float64, maths.exp_f64)):
        ends = torch.tensor([0.0, -0.0, -math.inf, -1e30, math.nan], dtype=dtype)
        assert mapped(function, ends, dtype)[:4].tolist() == [1, 1, 0, 0]
        assert mapped(function, ends, dtype)[4].isnan()
    ends = torch.tensor([1.0, math.inf, math.nan], dtype=torch.float64)
    logs = mapped(maths.log_f64, ends, torch.float64)
    assert logs[0] == 0 and logs[1] == math.inf and logs[2].isnan()


# --------------------------------------------------------------------------------------- 16-bit floats


def every(half: torch.dtype) -> Tensor:
    """All 65,536 numbers of a 16-bit type."""
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(half)


@each_half
def test_all_65536_values_widen_as_in_torch_and_come_back(half: torch.dtype, maths: ctypes.CDLL) -> None:
    name = str(half)[6:]
    wide = mapped(getattr(maths, f"from_{name}"), every(half), torch.float32)
    expected = every(half).float()
    number = ~expected.isnan()
    assert torch.equal(wide.isnan(), ~number)
    assert torch.equal(wide[number].view(torch.int32), expected[number].view(torch.int32))
    back = mapped(getattr(maths, f"to_{name}"), wide, half)
    assert torch.equal(back[number].view(torch.int16), every(half)[number].view(torch.int16))
    assert back[~number].isnan().all()


def beyond(half: torch.dtype) -> Tensor:
    """Where infinity begins, and its neighbours; the smallest and the largest patterns of a NaN."""
    pattern = {torch.float16: 0x477FF000, torch.bfloat16: 0x7F7F8000}[half]
    edge = torch.tensor([pattern], dtype=torch.int32).view(torch.float32)
    down, up = edge.nextafter(torch.zeros(1)), edge.nextafter(torch.full((1,), math.inf))
    nan = torch.tensor([0x7F800001, 0x7FFFFFFF, -0x7FFFFF], dtype=torch.int32).view(torch.float32)
    return torch.cat((edge, down, up, -edge, -down, -up, nan))


@each_half
def test_narrowing_rounds_as_in_torch(half: torch.dtype, maths: ctypes.CDLL) -> None:
    """Halfway between all neighbours, one float to either side, and two million floats of every magnitude."""
    finite = every(half).float()
    finite = finite[finite.isfinite()].sort().values
    middle = (finite[1:].double() + finite[:-1].double()).div(2).float()
    around = [middle.nextafter(torch.full_like(middle, side)) for side in (-math.inf, math.inf)]
    patterns = (
        torch.linspace(-(2.0**31), 2.0**31 - 1, 2_000_003, dtype=torch.float64).to(torch.int32).view(torch.float32)
    )
    values = torch.cat((middle, *around, patterns, beyond(half), torch.tensor([math.inf, -math.inf, 0.0, -0.0])))
    got, expected = mapped(getattr(maths, f"to_{str(half)[6:]}"), values, half), values.to(half)
    number = ~values.isnan()
    assert got[~number].isnan().all()
    assert torch.equal(got[number].view(torch.int16), expected[number].view(torch.int16))
