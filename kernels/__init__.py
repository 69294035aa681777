"""Triton kernels, one file per operator: a jit kernel and a plain launcher each.

None is written yet: every operator has a plain-torch body for any device and a C++ body for CPUs. Installed as
``fastsal.kernels``; nothing may import a top-level ``kernels``, the name of another project.
"""
