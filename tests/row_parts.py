"""What the functions of row_parts.cpp must make, against fractions, sorting and closed forms.

for label, problem in checks():
    assert (wrong := problem(library)) is None, f"{label}: {wrong}"
"""

from __future__ import annotations

import ctypes
import itertools
import math
import random
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from fastsal import reference

Problem = Callable[[ctypes.CDLL], str | None]
Placed = Callable[[Tensor], Tensor]  # puts a tensor where an access past its end is noticed
F32, F64 = torch.float32, torch.float64
NAMES = {F32: "f32", F64: "f64"}
INF, NAN = math.inf, math.nan
LANES = 16


def checks(placed: Placed = lambda value: value) -> Iterator[tuple[str, Problem]]:
    for dtype in (F32, F64):
        yield f"directed sums {NAMES[dtype]}", _directed(dtype)
        yield f"sums towards {NAMES[dtype]}", _towards(dtype)
        yield f"ball and box {NAMES[dtype]}", _ball_and_box(dtype)
        yield f"radii {NAMES[dtype]}", _radii(dtype)
        yield f"largest {NAMES[dtype]}", _largest(dtype, placed)
        yield f"ranking {NAMES[dtype]}", _ranking(dtype, placed)
        yield f"choice {NAMES[dtype]}", _choice(dtype, placed)
        yield f"L1 row {NAMES[dtype]}", _l1_row(dtype, placed)
    yield "noise", _noise(placed)
    yield "probes for a threshold", _probes
    yield "first match", _first(placed)
    yield "rival", _rival(placed)
    yield "units", _units
    yield "fold", _fold(placed)
    yield "sums", _sums(placed)
    yield "norms of any magnitude", _norms
    yield "room in the box", _room
    yield "which loop", _which_loop
    yield "shrinkage", _shrinkage(placed)
    yield "shrinkage, told", _shrinkage_told
    yield "shrinkage at a jump", _shrinkage_at_a_jump


def call(function: Any, *arguments: Any) -> int:
    """A function of the library: tensors as pointers, floats as doubles."""
    function.restype = ctypes.c_int64
    return int(function(*map(_passed, arguments)))


def _passed(value: Any) -> Any:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    kind = {bool: ctypes.c_bool, int: ctypes.c_int64, float: ctypes.c_double}.get(type(value))
    return kind(value) if kind else value


# ----------------------------------------------------------------------------- sums with a direction


def _numbers(dtype: torch.dtype, count: int, seed: int) -> Tensor:
    """Numbers of many magnitudes and of either sign, zeros, neighbours of 1, the smallest and some of the largest."""
    generator = torch.Generator().manual_seed(seed)
    info = torch.finfo(dtype)
    least = info.smallest_normal * info.eps
    exponents = torch.randint(-60, 30, (count,), generator=generator).double()
    values = (torch.randn(count, dtype=F64, generator=generator) * 2**exponents).to(dtype)
    special = [0.0, -0.0, 1, -1, 1 - info.eps / 2, 1 + info.eps, least, -least, info.tiny, info.max / 4, 0.5]
    picked = torch.tensor(special, dtype=dtype)[torch.randint(len(special), (count,), generator=generator)]
    return torch.where(torch.rand(count, generator=generator) < 0.3, picked, values)


def _below(exact: Fraction, near: Tensor) -> float:
    """The largest number of near's dtype that is not above `exact`, which lies close to `near`."""
    down, up = near.new_tensor(-INF), near.new_tensor(INF)
    while Fraction(near.item()) > exact:
        near = near.nextafter(down)
    while Fraction((after := near.nextafter(up)).item()) <= exact:
        near = after
    return float(near.item())


def _directed(dtype: torch.dtype) -> Problem:
    a, b = _numbers(dtype, 500, 1), _numbers(dtype, 500, 2)
    exact = [Fraction(x) + Fraction(y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    down = [_below(e, s) for e, s in zip(exact, a + b, strict=True)]
    up = [-_below(-e, -s) for e, s in zip(exact, a + b, strict=True)]

    def problem(library: ctypes.CDLL) -> str | None:
        got_down, got_up = torch.full_like(a, NAN), torch.full_like(a, NAN)
        call(getattr(library, f"directed_{NAMES[dtype]}"), a, b, got_down, got_up, len(a))
        wrong = sum(x != y for x, y in zip(got_down.tolist() + got_up.tolist(), down + up, strict=True))
        return f"{wrong} sums are rounded the wrong way" if wrong else None

    return problem


def _towards(dtype: torch.dtype) -> Problem:
    """The sum in fp64, rounded towards x: down where delta > 0, up where it is not."""
    x, delta = _numbers(dtype, 500, 3), _numbers(dtype, 500, 4).double() * (1 + 2.0**-40)
    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    x[:4], delta[:4] = 0, torch.tensor([least / 4, -least / 4, least * 0.75, -least * 0.75], dtype=F64)
    x[4:8], delta[4:8] = 1, torch.tensor([0.0, 1e-30, -1e-30, 3e-8], dtype=F64)
    x[8:10], delta[8:10] = torch.tensor([-least, least], dtype=dtype), torch.tensor([0.75, -0.75], dtype=F64) * least
    expected = []
    for a, d in zip(x, delta.tolist(), strict=True):
        exact = Fraction(a.item()) + Fraction(d) if dtype == F64 else Fraction(a.item() + d)
        near = torch.tensor(float(exact), dtype=dtype)
        expected.append(_below(exact, near) if d > 0 else -_below(-exact, -near))

    def problem(library: ctypes.CDLL) -> str | None:
        got = torch.full_like(x, NAN)
        call(getattr(library, f"towards_{NAMES[dtype]}"), x, delta, got, len(x))
        wrong = [at for at, (mine, theirs) in enumerate(zip(got.tolist(), expected, strict=True)) if mine != theirs]
        return f"{len(wrong)} wrong, first {x[wrong[0]].item()} + {delta[wrong[0]].item()}" if wrong else None

    return problem


def _same(mine: Tensor, theirs: Tensor) -> bool:
    """The same bits, but that one NaN is as good as another."""
    integer = {F32: torch.int32, F64: torch.int64}[mine.dtype]
    return bool(((mine.view(integer) == theirs.view(integer)) | (mine.isnan() & theirs.isnan())).all())


def _ball_and_box(dtype: torch.dtype) -> Problem:
    """As the reference has it, which sign a zero has included."""
    values = [-INF, -2.0, -0.5, -0.0, 0.0, 0.5, 2.0, INF, NAN]
    edges, sizes = [-1.0, -0.5, -0.0, 0.0, 0.5, 1.0], [-0.0, 0.0, 0.5, 1e-40]
    every = [
        (v, clean, low, high, eps)
        for v, clean, low, high, eps in itertools.product(values, edges, edges, edges, sizes)
        if low <= clean <= high
    ]
    operands = [torch.tensor(column, dtype=dtype) for column in zip(*every, strict=True)]
    v, clean, low, high, eps = operands
    expected = reference._into_ball_and_box(v, clean, eps, low, high)

    def problem(library: ctypes.CDLL) -> str | None:
        out = torch.full_like(v, NAN)
        call(getattr(library, f"inside_{NAMES[dtype]}"), *operands, out, len(v))
        return None if _same(out, expected) else "not the bits of the reference"

    return problem


def _radii(dtype: torch.dtype) -> Problem:
    """Short of eps by 2^-20, or 2^-48 in fp64; and 0 where fp64 does not hold the margin."""
    margin = 2.0**-48 if dtype == F64 else 2.0**-20
    least = [2.0**-960, 2.0**-960 * (1 + 2.0**-48), 2.0**-959, 2.0**-961] if dtype == F64 else []
    eps = torch.tensor([0.0, 1, 0.1, 8 / 255, 3e7, torch.finfo(dtype).tiny, *least], dtype=dtype)
    inner = [e * (1 - margin) for e in eps.tolist()]
    expected = [radius if radius >= 2.0**-960 else 0.0 for radius in inner]

    def problem(library: ctypes.CDLL) -> str | None:
        out = torch.full((len(eps),), NAN, dtype=F64)
        call(getattr(library, f"radii_{NAMES[dtype]}"), eps, out, len(eps))
        return None if out.tolist() == expected else f"{out.tolist()}, expected {expected}"

    return problem


# ----------------------------------------------------------------------------------- sums in lanes


def _fold(placed: Placed) -> Problem:
    """Halves onto halves, down to one: lanes that differ by 2^4 do not forgive another order."""
    lanes = torch.tensor([(1 + lane / 64) * 16.0 ** (lane % 13 - 6) for lane in range(LANES)], dtype=F64)
    expected = lanes.tolist()
    while len(expected) > 1:
        half = len(expected) // 2
        expected = [a + b for a, b in zip(expected[:half], expected[half:], strict=True)]

    def problem(library: ctypes.CDLL) -> str | None:
        given, out = placed(lanes), torch.full((1,), NAN, dtype=F64)
        call(library.fold_f64, given, out)
        return None if out.tolist() == expected else f"{out.item()}, expected {expected[0]}"

    return problem


def _units(library: ctypes.CDLL) -> str | None:
    """2^-e for numbers of [2^e, 2^(e + 1)), where |e| <= 1000; beyond that as for 1000; 1 for zero."""
    exponents = [-1074, -1023, -1022, -1002, -1001, -1000, -999, -100, -1, 0, 1, 52, 999, 1000, 1001, 1002, 1023]
    values = [math.ldexp(m, e) for e in exponents for m in (1, 1.9999)]
    expected = [math.ldexp(1, -min(max(math.frexp(v)[1] - 1, -1000), 1000)) for v in values]
    given = torch.tensor([*values, 0.0], dtype=F64)
    got = torch.full_like(given, NAN)
    call(library.safe_units, given, got, len(given))
    return None if got.tolist() == [*expected, 1.0] else "a wrong unit"


SIZES = [0, 1, 2, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 80, 100, 127, 128, 129, 200, 300]


def _sums(placed: Placed) -> Problem:
    """Sums to the last places of fp64; with compensation also where each term is lost in the sum before it."""
    generator = torch.Generator().manual_seed(5)
    rows = [placed(torch.rand(size, dtype=F64, generator=generator) + 0.25) for size in SIZES]
    lost = torch.full((LANES * 513,), 2.0**-53, dtype=F64)  # half of 1's last place: it never adds up by itself
    lost[:LANES] = 1
    uneven = torch.rand(LANES * 700, dtype=F64, generator=generator) * 2 ** torch.arange(LANES * 700).remainder(40)
    rows += [lost, uneven]
    totals = [math.fsum(row.tolist()) for row in rows]
    all_squares = [sum((Fraction(v) ** 2 for v in row.tolist()), Fraction(0)) for row in rows]

    def problem(library: ctypes.CDLL) -> str | None:
        for (row, total, squares), exact in itertools.product(
            zip(rows, totals, all_squares, strict=True), (False, True)
        ):
            out = torch.full((2,), NAN, dtype=F64)
            call(library.sums, row, len(row), exact, out)
            allowed = 8 * 2.0**-53 if exact else 2.0**-53 * (8 + len(row) / LANES)
            if not abs(out[0].item() - total) <= allowed * total:
                return f"the sum of {len(row)} is {out[0].item()}, not {total}"
            if not abs(Fraction(out[1].item()) ** 2 - squares) <= 2 * allowed * squares:
                return f"the norm of {len(row)} is {out[1].item()}"
        return None

    return problem


def _norms(library: ctypes.CDLL) -> str | None:
    """(3, 4, 12) has length 13, in every unit that fp64 has."""
    for e, exact in itertools.product([*range(-1074, 1021, 3), 1020], (False, True)):
        row = torch.tensor([math.ldexp(v, e) for v in (3, -4, 12)], dtype=F64)
        out = torch.full((2,), NAN, dtype=F64)
        call(library.wide_norm, row, len(row), exact, out)
        unit, norm = map(Fraction, out.tolist())
        if abs(norm / unit / Fraction(2) ** e - 13) > Fraction(1, 10**15):
            return f"2^{e} * (3, -4, 12): {float(norm)} in units of {float(unit)}"
        if -480 < e < 480 and unit != 1:
            return f"a unit where none is needed, at 2^{e}"
        if -480 < e < 480:
            call(library.plain_norm, row, len(row), out)
            if out.tolist() != [1, float(norm)]:
                return f"2^{e} * (3, -4, 12): {out.tolist()} without units"
    for at in range(5):  # one element is all that counts
        row, out = torch.full((5,), 1e-200, dtype=F64), torch.full((2,), NAN, dtype=F64)
        row[at] = 1e300
        call(library.wide_norm, row, len(row), True, out)
        if not abs(out[1] / out[0] - 1e300) <= 1e285:
            return f"1e300 at {at} among numbers of 1e-200: {out.tolist()}"
    row, out = torch.zeros(5, dtype=F64), torch.full((2,), NAN, dtype=F64)
    call(library.wide_norm, row, len(row), True, out)
    return None if out.tolist() == [1, 0] else "zeros have no norm"


# ----------------------------------------------------------------------------------- largest numbers


def _rows(dtype: torch.dtype, least: int, seed: int) -> Iterator[Tensor]:
    """Rows of all sizes with ties, and one whose largest stands alone at either end."""
    generator = torch.Generator().manual_seed(seed)
    for size in filter(lambda size: size >= least, SIZES):
        row = torch.randint(-size // 2 - 3, size // 2 + 1, (size,), generator=generator).to(dtype)
        yield row
        for at in {0, size // 2, size - 1} if size else ():
            other = row.clone()
            other[at] = size
            yield other.clone()
            other[-1] = size  # and twice
            yield other
    yield torch.full((70,), -INF, dtype=dtype)


def _largest(dtype: torch.dtype, placed: Placed) -> Problem:
    rows = list(_rows(dtype, 0, 6))
    for size in (5, 16, 70, 150):
        for at in range(size):
            row = torch.zeros(size, dtype=dtype)
            row[at] = NAN
            rows.append(row)
    rows = list(map(placed, rows))

    def problem(library: ctypes.CDLL) -> str | None:
        for row in rows:
            value, nan = torch.zeros(1, dtype=dtype), torch.zeros(1, dtype=torch.bool)
            call(getattr(library, f"largest_{NAMES[dtype]}"), row, len(row), value, nan)
            if bool(nan) != bool(row.isnan().any()):
                return f"{len(row)} numbers: NaN {bool(nan)}"
            if not nan and value.item() != max(row.tolist(), default=-INF):
                return f"{len(row)} numbers: {value.item()} is not the largest"
        return None

    return problem


def _ranking(dtype: torch.dtype, placed: Placed) -> Problem:
    rows = list(map(placed, _rows(dtype, 4, 7)))

    def problem(library: ctypes.CDLL) -> str | None:
        for row in rows:
            values, indices = torch.full((4,), NAN, dtype=dtype), torch.full((4,), -7)
            call(getattr(library, f"ranking_{NAMES[dtype]}"), row, len(row), values, indices)
            first = sorted(range(len(row)), key=lambda i, row=row: (-row[i].item(), i))[:4]
            if indices.tolist() != first or values.tolist() != row[first].tolist():
                return f"{len(row)} numbers: {indices.tolist()}, not {first}"
        return None

    return problem


def _rival(placed: Placed) -> Problem:
    """The largest besides the label, the first of equals; NaN is larger than anything."""
    rows = list(_rows(F32, 2, 11))
    for size, at in ((5, 0), (40, 39), (300, 150), (300, 299)):
        row = torch.zeros(size)
        row[at] = NAN
        rows.append(row)
    calls = []
    for row in rows:
        height = row.nan_to_num(INF, 1e30, -1e30).tolist()
        for label in sorted({0, len(row) // 2, len(row) - 1}):
            others = [i for i in range(len(row)) if i != label]
            calls.append((placed(row), label, max(others, key=lambda i, height=height: (height[i], -i))))

    def problem(library: ctypes.CDLL) -> str | None:
        for row, label, expected in calls:
            found = call(library.rival_f32, row, len(row), label)
            if found != expected:
                return f"class {found} of {len(row)} is not the rival of {label}, which is {expected}"
        return None

    return problem


def _first(placed: Placed) -> Problem:
    rows = {size: placed(torch.arange(float(size))) for size in SIZES}

    def problem(library: ctypes.CDLL) -> str | None:
        for size, row in rows.items():
            for bound in range(-1, size, 1 + size // 9):
                found = call(library.first_above, row, size, ctypes.c_float(bound))
                if found != bound + 1:
                    return f"the first above {bound} of {size} is at {found}"
        return None

    return problem


# ------------------------------------------------------------------------------------------ noise of a chunk


def _noise(placed: Placed) -> Problem:
    """128 words as normals (Box-Muller, two and two) and as signed exponentials."""
    words = torch.randint(2**32, (128,), generator=torch.Generator().manual_seed(10))
    u = ((words >> 9) + 0.5) * 2.0**-23
    length, angle = torch.sqrt(-2 * torch.log(u[0::2].double())), 2 * math.pi * u[1::2].double()
    normal = torch.stack((length * torch.cos(angle), length * torch.sin(angle)), dim=1).view(-1)
    exponential = torch.where(words & 1 == 1, torch.log(u.double()), -torch.log(u.double()))
    given = placed(words.to(torch.uint32).view(torch.int32))

    def problem(library: ctypes.CDLL) -> str | None:
        outs = [placed(torch.full((128,), NAN, dtype=F64)) for _ in range(2)]
        call(library.noise, given, *outs)
        for name, got, expected in (("normals", outs[0], normal), ("exponentials", outs[1], exponential)):
            if not (got - expected).abs().max() <= 1e-14:
                return f"{name} are off by {(got - expected).abs().max()}"
        return None

    return problem


# ------------------------------------------------------------------------------ the searches of an L1 step


def _choice(dtype: torch.dtype, placed: Placed) -> Problem:
    """Which elements move: the topk of a list sorted by falling magnitude and then by index, but for the zeros."""
    generator = torch.Generator().manual_seed(8)
    calls = []
    for size, channels in ((1, 1), (5, 1), (12, 3), (40, 4), (99, 9), (300, 1)):
        for spread, topk in itertools.product((0, 2, 5, 10**6), (1, 2, size // 3, size - 1, size)):
            grad = torch.randint(-spread, spread + 1, (size,), generator=generator).to(dtype)
            if 1 <= topk <= size:
                calls.append((grad, channels, topk))
    info = torch.finfo(dtype)
    ends = torch.tensor([info.max, -info.max, 0, info.smallest_normal * info.eps], dtype=dtype)
    calls += [(ends, 1, topk) for topk in (1, 2, 3, 4)]
    neighbours = torch.tensor([1, 1 + info.eps, -1, 1, -1 - info.eps], dtype=dtype)
    calls += [(neighbours, 1, topk) for topk in (1, 2, 3, 4, 5)]

    def problem(library: ctypes.CDLL) -> str | None:
        for grad, channels, topk in calls:
            size = len(grad)
            moves, moving = torch.zeros(size, dtype=torch.bool), torch.full((1,), -7)
            memory = placed(grad.view(channels, -1).T.contiguous().view(-1))
            probes = call(getattr(library, f"choose_{NAMES[dtype]}"), memory, size, channels, topk, moves, moving)
            first = sorted(range(size), key=lambda i, grad=grad: (-abs(grad[i].item()), i))[:topk]
            wanted = sorted(i for i in first if grad[i] != 0)
            if moves.nonzero().flatten().tolist() != wanted or moving.item() != len(wanted):
                return f"{topk} of {size} in {channels} channels: {moving.item()} move"
            if probes > {F32: 31, F64: 63}[dtype]:
                return f"{probes} probes"
        return None

    return problem


def _l1_row(dtype: torch.dtype, placed: Placed) -> Problem:
    """Three rows one after the other, in memory that holds NaN: none relies on what it was not given."""
    generator = torch.Generator().manual_seed(12)
    rows = []
    for size, topk in ((1, 1), (15, 2), (16, 16), (17, 3), (64, 5)):
        x = torch.rand(3, size, dtype=dtype, generator=generator)
        here = x + torch.randn(3, size, dtype=dtype, generator=generator) * 0.3
        here[:, ::3] = x[:, ::3]
        grad = torch.randint(-3, 4, (3, size), generator=generator).to(dtype)
        grad[2] = 0
        grad[2, ::7] = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        eps, alpha = torch.tensor([0.5], dtype=dtype), torch.tensor([0.25], dtype=dtype)
        expected = reference.pgd_step(x, here, grad, eps, alpha, None, None, None, None, 1.0, topk)[0]
        rows.append((placed(x), placed(here), placed(grad), topk, expected))

    def problem(library: ctypes.CDLL) -> str | None:
        for x, here, grad, topk, expected in rows:
            for row in range(len(x)):
                size = x.shape[1]
                scratch = placed(torch.full((call(library.l1_scratch_of, size),), NAN, dtype=F64))
                out = torch.full((size,), NAN, dtype=dtype)
                function = getattr(library, f"l1_row_{NAMES[dtype]}")
                call(function, x[row], here[row], grad[row], out, size, 0.5, 0.25, topk, scratch)
                if not (out - expected[row]).abs().max() <= 2e-7:
                    return f"row {row} of {size} elements is off by {(out - expected[row]).abs().max()}"
        return None

    return problem


def _room(library: ctypes.CDLL) -> str | None:
    """To the edge on the side of the displacement; none for a point that is outside of the box."""
    library.room_of.restype = ctypes.c_double
    for clean, delta, room in (
        (0.25, 1, 0.75),
        (0.25, -1, 0.25),
        (1.5, 1, 0),
        (2, 1, 0),
        (-2, -1, 0),
        (NAN, 1, 0),
        (1, 3, 0),
    ):
        found = library.room_of(*map(ctypes.c_double, (clean, delta, 0, 1)))
        if found != room:
            return f"from {clean} by {delta} there is room for {found}, expected {room}"
    return None


def _which_loop(library: ctypes.CDLL) -> str | None:
    """The quick loops are taken where they may be: a box that begins at 0; so many classes as there is room for."""
    for low, high, expected in ((0.0, 1.0, 1), (0.0, 3e38, 1), (1.0, 2.0, 0), (-1.0, 1.0, 0)):
        if call(library.from_zero_of, ctypes.c_float(low), ctypes.c_float(high)) & 1 != expected:
            return f"a box from {low} to {high}"
    for classes, expected in ((10, 0), (100_000, 1), (131_073, 0), (10**7, 0)):
        if call(library.worthwhile_of, classes) & 1 != expected:
            return f"{classes} classes"
    return None


def _probes(library: ctypes.CDLL) -> str | None:
    """Bisection halves: 2^30 keys take 30 probes, and one where exactly topk are found at once."""
    alike = torch.tensor([0x3FFFFFFF, 0x3FFFFFFF], dtype=torch.int32).view(F32)
    for grad, topk, expected in ((alike, 1, 30), (alike, 2, 1), (torch.zeros(3), 1, 0)):
        moves, moving = torch.zeros(len(grad), dtype=torch.bool), torch.zeros(1, dtype=torch.int64)
        probes = call(library.choose_f32, grad, len(grad), 1, topk, moves, moving)
        if probes != expected:
            return f"{probes} probes for {grad.tolist()}, expected {expected}"
    return None


# How many passes the search takes over each row of _displaced(), in base 36: what its Newton steps are there for.
PASSES = (
    "111100199m00111100111100111100122g00122100132c0013210014810012310016910014310015b1001331001"
    "2a10013410016a1001431001e41001441001841001541001d31001541001c91001641001g51001542001b4100201"
)


def _displaced() -> Iterator[tuple[float, list[float], list[float]]]:
    """Radius, magnitudes, and how far the box lets each go."""
    numbers = random.Random(9)
    for count, scale, tight in itertools.product((1, 3, 16, 40, 150), (1e-3, 1, 1e5), (False, True)):
        magnitudes = [scale * numbers.random() / (1.01 - numbers.random()) for _ in range(count)]
        rooms = [numbers.random() * scale if tight else 1e30 for _ in range(count)]
        total = math.fsum(map(min, magnitudes, rooms))
        for share in (0, 0.01, 0.5, 0.999, 1 + 1e-12, 2):
            yield share * total, magnitudes, rooms
    yield 1.0, [1e5, 1e-300, 1.0], [1e308, 1e308, 1e308]
    yield 4.0, [4.0] * 3 + [0.5], [1.0, 1.0, 1.0, 1.0]
    yield 3.0, [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]


def _shrinkage(placed: Placed) -> Problem:
    """What is kept adds up to the radius, and no row takes more passes than it should."""
    calls = list(_displaced())

    def problem(library: ctypes.CDLL) -> str | None:
        taken = []
        for (limit, magnitudes, rooms), exact in itertools.product(calls, (False, True)):
            padding = [0.0] * (-len(magnitudes) % LANES)
            memory = [placed(torch.tensor(values + padding, dtype=F64)) for values in (magnitudes, rooms)]
            found = torch.full((1,), NAN, dtype=F64)
            taken.append(call(library.shrinkage, limit, *memory, len(memory[0]), exact, found))
            shrink = found.item()
            kept = math.fsum(min(max(m - shrink, 0.0), r) for m, r in zip(magnitudes, rooms, strict=True))
            inside = math.fsum(map(min, magnitudes, rooms)) <= limit
            if kept > limit * (1 + 2.0**-50) or (shrink != 0 if inside else kept < limit * (1 - 2.0**-29)):
                return f"{len(magnitudes)} elements shrink by {shrink} to {kept}, the radius is {limit}"
        slow = [at // 2 for at, passes in enumerate(taken) if passes > int(PASSES[at // 2], 36)]
        return f"more passes than there used to be, over rows {slow}" if slow else None

    return problem


def _shrinkage_told(library: ctypes.CDLL) -> str | None:
    """Where the search probes, told sums that it could have found: (radius, largest), reports, and probes or None."""
    aim, near, far = 1 - 2.0**-32, 1 - 2.0**-30, 1 - 2.0**-29
    stories: list[tuple[tuple[float, float], list[tuple[float, float]], list[float], bool]] = [
        ((1, 8), [(1, 3)], [0], True),  # the point is on the ball
        ((1, 8), [(0.5, 3)], [0], True),  # or inside
        ((1, 8), [(3, 4), (1, 4)], [(3 - aim) / 4] * 2, True),  # Newton's step, and all of the radius
        ((1, 8), [(3, 4), (near, 4)], [(3 - aim) / 4] * 2, True),  # 2^-30 of it short
        ((1, 8), [(3, 4), (1.5, 2)], [(3 - aim) / 4, (3 - aim) / 4 + (1.5 - aim) / 2], False),
        ((1, 8), [(3, 0.25)], [4], False),  # Newton's step leads too far: the middle
        ((1, 8), [(3, 0)], [4], False),  # and so it does where nothing falls
        ((1, 8), [(NAN, 1)], [4], False),  # no number is not inside
        ((1, 8), [(INF, 1)], [4], False),
        ((0, 8), [(3, 4)], [8], True),  # no radius: nothing is kept
        # too far: the chord between (0, 3) and (probe, far)
        ((1, 8), [(3, 4), (far, 4)], [(3 - aim) / 4, (3 - aim) * ((3 - aim) / 4 / (3 - far))], False),
    ]
    for (limit, largest), reports, expected, ends in stories:
        masses, falling = (torch.tensor(column, dtype=F64) for column in zip(*reports, strict=True))
        probes, done = torch.full_like(masses, NAN), torch.zeros(1, dtype=torch.bool)
        told = call(library.shrinkage_told, float(limit), float(largest), masses, falling, len(masses), probes, done)
        if told != len(reports) or bool(done) != ends or probes.tolist() != expected:
            return f"told {reports}: probes {probes.tolist()}, expected {expected}; done: {bool(done)}"
    return None


def _shrinkage_at_a_jump(library: ctypes.CDLL) -> str | None:
    """Halving finds the edge to the last place at every magnitude, in as many passes as there are bits, about."""
    for edge, over in itertools.product((5e-324, 1e-300, 1e-17, 0.3, 1.0, 1.7, 1e30, 1e300), (INF, NAN)):
        found = torch.full((1,), NAN, dtype=F64)
        passes = call(library.shrinkage_at_a_jump, 1e-3, 1.5e300, edge, over, found)
        if found.item() != edge or passes > 60 + 64:
            return f"the edge at {edge} is found at {found.item()} in {passes} passes"
    return None
