"""Counter-based noise. It depends on the seed, the sample id and the element's row-major index, and on nothing else."""

import triton
import triton.language as tl

from .maths import log_positive, root, turn


@triton.jit
def philox_round(c0, c1, c2, c3, key0, key1):
    """The counter and the key after a round more."""
    first = c0.to(tl.uint64) * 0xD2511F53
    second = c2.to(tl.uint64) * 0xCD9E8D57
    c0 = (second >> 32).to(tl.uint32) ^ c1 ^ key0
    c2 = (first >> 32).to(tl.uint32) ^ c3 ^ key1
    return c0, second.to(tl.uint32), c2, first.to(tl.uint32), key0 + 0x9E3779B9, key1 + 0xBB67AE85


@triton.jit
def philox(seed, key, block, ROLLED: tl.constexpr = False):
    """The four words of a counter block, Philox-4x32-10 (Salmon et al. 2011): element e has word e % 4 of block e // 4.

    key = (seed lo, seed hi), counter = (block lo, block hi, sample key lo, sample key hi); all int64. ROLLED: the
    rounds stay a loop, for a compiler would otherwise keep the keys of all ten from one call to the next.
    """
    key0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    key1 = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    c0 = (block & 0xFFFFFFFF).to(tl.uint32)
    c1 = ((block >> 32) & 0xFFFFFFFF).to(tl.uint32)
    c2 = tl.zeros_like(c0) + (key & 0xFFFFFFFF).to(tl.uint32)
    c3 = tl.zeros_like(c0) + ((key >> 32) & 0xFFFFFFFF).to(tl.uint32)
    if ROLLED:
        for _ in tl.range(0, 10, loop_unroll_factor=1):
            c0, c1, c2, c3, key0, key1 = philox_round(c0, c1, c2, c3, key0, key1)
    else:
        for _ in tl.static_range(10):
            c0, c1, c2, c3, key0, key1 = philox_round(c0, c1, c2, c3, key0, key1)
    return c0, c1, c2, c3


@triton.jit
def uniform(word, T: tl.constexpr):
    """u = ((w >> 9) + 0.5) * 2^-23 in (0, 1), exact in fp32 and fp64."""
    return ((word >> 9).to(tl.int32).to(T) + 0.5) * 1.1920928955078125e-07


@triton.jit
def normal_pair(word0, word1):
    """Two standard normals (Box-Muller), fp64: words 0, 1 make elements 0, 1 of a block, words 2, 3 the rest."""
    length = root(log_positive(uniform(word0, tl.float64)) * -2)
    sine, cosine = turn(uniform(word1, tl.float64))
    return length * cosine, length * sine


@triton.jit
def signed_exponential(word):
    """A standard exponential with the sign that the lowest bit of its word tells, which is no part of u; fp64."""
    logarithm = log_positive(uniform(word, tl.float64))
    return tl.where((word & 1) == 1, logarithm, -logarithm)


@triton.jit
def four_in_a_row(a, b, c, d):
    """a0 b0 c0 d0 a1 b1 c1 d1 ..."""
    return tl.interleave(tl.interleave(a, c), tl.interleave(b, d))


@triton.jit
def one_of_four(index, a, b, c, d):
    """Element by element, the one that `index` modulo 4 names."""
    which = index & 3
    return tl.where(which < 2, tl.where(which == 0, a, b), tl.where(which == 2, c, d))
