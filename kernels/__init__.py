"""Triton kernels, one op per file under the names of :mod:`gancomp.ops`. Importing this package imports no Triton."""
