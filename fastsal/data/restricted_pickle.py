"""Reads pickled dicts of plain values and numeric arrays, and nothing else.

A pickle is a program: loading one with the pickle module runs whatever it names. CIFAR's Python
version comes as pickles, so this reader admits only what those need. Two gates stand in a row:

1. Before anything runs, the opcodes are listed and only those that build plain values pass.
   (Among those refused are the extension registry, which can reach code without naming it, and
   memo numbers beyond the file's length, which make the unpickler allocate at will.)
2. Each global that the pickle names is looked up in a short table of stand-ins. NumPy's own
   unpickling is never called: the stand-ins note shape, type and bytes, check them, and make the
   array with `numpy.frombuffer`.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import struct
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fastsal.data.errors import DataError

_OPCODES = frozenset(
    (
        # frame of the program and memo
        "PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET",
        # plain values
        "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1",
        "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
        "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
        # containers
        "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS",
        "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_SET", "ADDITEMS", "FROZENSET",
        # the stand-ins below
        "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD",
    )
)  # fmt: skip
_MEMO_OPCODES = frozenset(("BINPUT", "LONG_BINPUT"))
_NUMERIC_TYPE = re.compile("[bui][1248]|f[248]")


def load_dict(data: bytes, source: str) -> dict[str, object]:
    """The dict in a pickle.

    Args:
        data: a pickle of protocol 1 to 5, by Python 2 or 3.
        source: what to call it in errors, usually the path.

    Returns:
        The dict, keys as str, values as built-in values, with `numpy.ndarray` for arrays (of
        booleans, integers or floats; read-only). Strings of Python 2 come as bytes.

    Raises:
        DataError: if the pickle is damaged, holds something else than a dict with string keys,
            or names a global that is not admitted; the message then names it. Nothing that the
            pickle names is imported or called.
    """
    _check_opcodes(data, source)
    try:
        value = _Unpickler(data, source).load()
    except DataError:
        raise
    except (
        pickle.UnpicklingError, AttributeError, EOFError, IndexError, KeyError, OverflowError,
        TypeError, ValueError, struct.error,
    ) as error:  # fmt: skip
        # What the unpickler raises for a damaged program depends on where it breaks.
        raise DataError(f"{source}: damaged pickle: {error!r}") from error
    if not isinstance(value, dict):
        raise DataError(f"{source}: expected a pickled dict, got {type(value).__name__}")
    return {_key(key, source): _finished(item, source) for key, item in value.items()}


def _key(key: object, source: str) -> str:
    if isinstance(key, bytes):
        return key.decode("latin1")
    if isinstance(key, str):
        return key
    raise DataError(f"{source}: expected string keys, got {type(key).__name__}")


def _finished(item: object, source: str) -> object:
    if not isinstance(item, _Array):
        return item
    if item.array is None:
        raise DataError(f"{source}: damaged pickle: an array without contents")
    return item.array


def _check_opcodes(data: bytes, source: str) -> None:
    try:
        for opcode, argument, position in pickletools.genops(data):
            if opcode.name not in _OPCODES:
                raise DataError(
                    f"{source}: refused pickle opcode {opcode.name} at byte {position}: only "
                    "plain values and arrays are read"
                )
            if opcode.name in _MEMO_OPCODES and int(argument or 0) >= len(data):
                raise DataError(
                    f"{source}: refused memo number {argument} at byte {position}: expected "
                    f"less than the {len(data)} bytes of the pickle"
                )
    except DataError:
        raise
    except (ValueError, struct.error) as error:
        raise DataError(f"{source}: damaged or truncated pickle: {error}") from error


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, source: str) -> None:
        # Python 2 strings stay bytes: array contents are among them, and are no text.
        super().__init__(io.BytesIO(data), encoding="bytes")
        self._source = source

    def find_class(self, module: str, name: str, /) -> object:
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise DataError(
                f"{self._source}: refused global {module}.{name}: only plain values and "
                "numeric arrays are read from a pickle"
            ) from None


class _StandIn:
    """What a pickle gets in place of a global: callable if `call` is, and never changeable."""

    __slots__ = ("_call", "_name")

    def __init__(self, name: str, call: Callable[..., object] | None = None) -> None:
        self._name = name
        self._call = call

    def __call__(self, *arguments: object) -> object:
        if self._call is None:
            raise DataError(f"refused pickle: it calls {self._name}")
        return self._call(*arguments)

    def __setstate__(self, state: object) -> None:
        # Without this method BUILD would set attributes that the pickle chooses.
        raise DataError(f"refused pickle: it changes {self._name}")


class _Type:
    """A numeric dtype in the making: called with its code, then told its byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: object, align: object = False, copy: object = False) -> None:
        text = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(text, str) or not _NUMERIC_TYPE.fullmatch(text):
            raise DataError(f"refused pickle: array type: expected a numeric one such as 'u1', got {text!r}")
        self.code = text
        self.order = "|"

    def __setstate__(self, state: object) -> None:
        # (version, byte order, subarray, names, fields, size, alignment, flags)
        if not isinstance(state, tuple) or len(state) < 5 or state[2:5] != (None, None, None):
            raise DataError(f"refused pickle: array type: expected a plain one, got {state!r}")
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order not in ("|", "<", ">", "="):
            raise DataError(f"refused pickle: byte order: expected one of |<>=, got {order!r}")
        self.order = order

    def dtype(self) -> np.dtype[np.generic]:
        return np.dtype(self.order + self.code)


class _Array:
    """An array in the making: empty, then told its shape, type and contents."""

    __slots__ = ("array",)

    def __init__(self) -> None:
        self.array: NDArray[np.generic] | None = None

    def __setstate__(self, state: object) -> None:
        # (version, shape, dtype, whether the first dimension is fastest, contents)
        if not isinstance(state, tuple) or len(state) != 5:
            raise DataError("refused pickle: array: expected a state of five parts")
        _, shape, dtype, fortran, contents = state
        if not isinstance(dtype, _Type):
            raise DataError(f"refused pickle: array type: got {type(dtype).__name__}")
        if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
            raise DataError(f"refused pickle: array shape: expected sizes, got {shape!r}")
        if not isinstance(contents, bytes):
            raise DataError(f"refused pickle: array contents: expected bytes, got {type(contents).__name__}")
        expected = math.prod(shape) * dtype.dtype().itemsize
        if len(contents) != expected:
            raise DataError(
                f"damaged pickle: array of shape {shape} and type {dtype.code}: expected "
                f"{expected} bytes, got {len(contents)}"
            )
        flat: NDArray[np.generic] = np.frombuffer(contents, dtype=dtype.dtype())
        self.array = flat.reshape(shape, order="F" if fortran else "C")


_NDARRAY = _StandIn("numpy.ndarray")


def _reconstruct(kind: object, shape: object, type_code: object) -> _Array:
    # NumPy always writes this empty array first; its state follows with BUILD.
    if kind is not _NDARRAY or shape != (0,) or type_code not in (b"b", "b"):
        raise DataError(
            f"refused pickle: array: expected (numpy.ndarray, (0,), 'b'), got ({kind!r}, {shape!r}, {type_code!r})"
        )
    return _Array()


def _encode(text: object, encoding: object) -> bytes:
    # Python 3 writes bytes like this where the protocol has no bytes of its own.
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise DataError(
            f"refused pickle: _codecs.encode: expected (str, 'latin1'), got ({type(text).__name__}, {encoding!r})"
        )
    return text.encode("latin1")


_RECONSTRUCT = _StandIn("numpy _reconstruct", _reconstruct)
_STAND_INS: dict[tuple[str, str], _StandIn] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _StandIn("numpy.dtype", _Type),
    ("_codecs", "encode"): _StandIn("_codecs.encode", _encode),
}
