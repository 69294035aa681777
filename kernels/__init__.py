"""Triton kernels for NVIDIA and AMD devices, one file per operator: its jit kernels and a plain ``launch``.

``fastsal.kernels.NAME.launch(*arguments, *outputs)`` computes operator NAME of :mod:`fastsal.operators` on the current
stream. It looks at no values: an index or label out of range counts as padding or as a loss of NaN, and nothing is
read or written out of bounds. Installed as ``fastsal.kernels``; nothing may import a top-level ``kernels``, the name of
another project.

Device functions that operators share stand in files of their own: ``rounding`` (sums with a known direction of
rounding, 16-bit floats), ``maths`` (exp, log, rotation), ``noise`` (Philox) and ``rows`` (where a row lies).
"""
