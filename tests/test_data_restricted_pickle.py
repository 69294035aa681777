"""The restricted unpickler: what it reads, and that nothing else in a pickle ever runs."""

from __future__ import annotations

import copyreg
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest

from fastsal.data import DataError
from fastsal.data.restricted_pickle import load_dict


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.command = f"touch '{path}'"

    def __reduce__(self):
        return os.system, (self.command,)


def test_the_attack_of_these_tests_is_a_real_one(tmp_path):
    pickle.loads(pickle.dumps(Touch(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("wrap", [lambda t: {"data": t}, lambda t: [t], lambda t: {t: 1}])
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path, protocol, wrap):
    program = pickle.dumps(wrap(Touch(tmp_path / "ran")), protocol)
    with pytest.raises(DataError, match=r"refused"):
        load_dict(program, "evil")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name",
    [
        "os system", "posix system", "builtins eval", "builtins getattr", "builtins exec",
        "numpy load", "numpy.core.multiarray scalar", "numpy.ndarray tofile", "torch load",
        "fastsal.data.restricted_pickle load_dict", "__builtin__ file", "collections OrderedDict",
        "numpy._core.numeric _frombuffer", "_codecs decode", "copyreg _reconstructor",
    ],
)  # fmt: skip
def test_the_refused_global_is_named(name):
    module, attribute = name.split()
    program = b"\x80\x02}U\x04datac" + f"{module}\n{attribute}\n".encode() + b"s."
    with pytest.raises(DataError, match=f"evil: refused global {module}.{attribute}"):
        load_dict(program, "evil")


def test_names_that_are_put_together_on_the_stack_are_refused_too():
    program = b"\x80\x04}\x8c\x01a\x8c\x02os\x8c\x06system\x93s."
    with pytest.raises(DataError, match=r"refused global os.system"):
        load_dict(program, "evil")


def test_the_extension_registry_is_no_way_around(tmp_path):
    copyreg.add_extension("os", "system", 240)
    try:
        # Cached by an innocent load, the registered object would not be looked up again.
        assert pickle.loads(b"\x80\x02\x82\xf0.") is os.system
        program = b"\x80\x02}U\x01a\x82\xf0U\x04true\x85Rs."
        with pytest.raises(DataError, match="refused pickle opcode EXT1"):
            load_dict(program, "evil")
    finally:
        copyreg.remove_extension("os", "system", 240)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"\x80\x02}U\x01aPid\ns.", "refused pickle opcode PERSID"),
        (b"\x80\x02(ios\nsystem\n.", "refused pickle opcode INST"),
        (b"\x80\x02cnumpy\ndtype\n)\x81.", "refused pickle opcode NEWOBJ"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "refused memo number 2147483647"),
        (b"\x80\x02cnumpy\ndtype\n}U\x01xK\x01sb.", "it changes numpy.dtype"),
        (b"\x80\x02cnumpy\nndarray\nK\x05\x85R.", "it calls numpy.ndarray"),
        (b"\x80\x02c_codecs\nencode\nX\x01\0\0\0aX\x05\0\0\0rot13\x86R.", "rot13"),
        (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\ndtype\nK\0\x85U\x01b\x87R.",
         "expected .numpy.ndarray"),
        (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nM\xff\xff\x85U\x01b\x87R.",
         "expected .numpy.ndarray"),
    ],
)  # fmt: skip
def test_each_other_way_is_closed(program, message):
    with pytest.raises(DataError, match=message):
        load_dict(program, "evil")


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        np.asfortranarray(np.arange(6, dtype="<i8").reshape(2, 3)),
        np.arange(4, dtype=">u2"),
        np.linspace(0, 1, 5, dtype=np.float32),
        np.array([True, False]),
    ],
)
def test_arrays_come_back_as_they_were(protocol, array):
    got = load_dict(pickle.dumps({"a": array}, protocol), "good")["a"]
    assert isinstance(got, np.ndarray)
    assert got.dtype == array.dtype and got.shape == array.shape
    assert np.array_equal(got, array)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_come_back_as_they_were(protocol):
    value = {
        "text": "grün", "bytes": b"\0\xff", "int": -(2**70), "small": 3, "none": None,
        "flags": [True, False], "tuple": (1, (2, 3), ()), "nested": {"a": {"b": [1]}},
    }  # fmt: skip
    if protocol > 3:
        value["set"] = {1, 2}
        value["frozen"] = frozenset([1])
    assert load_dict(pickle.dumps(value, protocol), "good") == value


def python2_batch() -> bytes:
    """What Python 2 and its NumPy wrote, opcode by opcode; strings are bytes there."""
    return (
        b"\x80\x02}q\x01(U\x06labelsq\x02]q\x03(K\x03K\x09eU\x04dataq\x04"
        b"cnumpy.core.multiarray\n_reconstruct\nq\x05cnumpy\nndarray\nq\x06K\0\x85U\x01b\x87Rq\x07"
        b"(K\x01K\x02K\x03\x86cnumpy\ndtype\nq\x08U\x02u1K\0K\x01\x87Rq\x09"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89U\x06\x00\x7f\x80\xfe\xff\x0atbu."
    )


def test_python_2_strings_are_bytes_and_their_arrays_are_read():
    expected = pickle.loads(python2_batch(), encoding="bytes")
    assert np.array_equal(expected[b"data"], [[0, 127, 128], [254, 255, 10]])
    got = load_dict(python2_batch(), "old")
    assert sorted(got) == ["data", "labels"]
    assert got["labels"] == [3, 9]
    assert np.array_equal(got["data"], expected[b"data"])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([{}], dtype=object), "got 'O8'"),
        (np.array(["text"]), "got 'U4'"),
        (np.zeros(1, dtype=[("a", "u1")]), "got 'V1'"),
        (np.zeros(1, dtype="M8[s]"), "got 'M8'"),
        (np.zeros(1, dtype=np.complex64), "got 'c8'"),
    ],
)
def test_arrays_of_other_than_numbers_are_refused(array, message):
    with pytest.raises(DataError, match=f"array type: expected a numeric.*{message}"):
        load_dict(pickle.dumps({"a": array}, 2), "evil")


def test_an_array_must_have_the_bytes_that_its_shape_says():
    damaged = python2_batch().replace(b"K\x02K\x03\x86", b"K\x02K\x04\x86")
    with pytest.raises(DataError, match=r"shape \(2, 4\).*expected 8 bytes, got 6"):
        load_dict(damaged, "old")


@pytest.mark.parametrize(
    ("value", "message"),
    [([1], "expected a pickled dict, got list"), ({1: 2}, "expected string keys, got int")],
)
def test_something_else_than_a_dict_of_strings_is_refused(value, message):
    with pytest.raises(DataError, match=message):
        load_dict(pickle.dumps(value), "odd")


def test_every_truncation_is_found():
    program = python2_batch()
    for length in range(len(program)):
        with pytest.raises(DataError):
            load_dict(program[:length], "old")


def test_random_damage_gives_a_data_error_or_a_dict_and_nothing_else():
    generator = random.Random(0)
    programs = [python2_batch(), pickle.dumps({"a": np.arange(5), "b": [1, "x", b"y"]}, 4)]
    refused = 0
    for i in range(6000):
        damaged = bytearray(programs[i % 2])
        for _ in range(generator.randint(1, 3)):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        try:
            assert isinstance(load_dict(bytes(damaged), "fuzz"), dict)
        except DataError:
            refused += 1
    assert refused > 3000
