"""The largest eigenpairs of a symmetric matrix: what a truncated SVD needs, and no more.

SciPy's `eigh` computes a subset of eigenpairs but holds Python's lock while it does, which
would make the worker threads wait for one another; LAPACK itself, through the function
pointers that SciPy publishes for compiled callers, runs beside them.
"""

from __future__ import annotations

import ctypes
import math
from functools import cache
from typing import Any

import numpy as np
import torch
from scipy.linalg import cython_lapack
from torch import Tensor

WORK_BLOCKS = 90  # workspace in columns; LAPACK's minimum is 26, its blocked code uses more
INTEGER_WORK = 10
LARGEST_SHIFT = 120  # powers of two; the shift and its inverse are float32 numbers


class EigenError(ArithmeticError):
    """LAPACK did not converge."""


def largest_eigenpairs(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest eigenvalues of a symmetric matrix and their eigenvectors.

    Args:
        matrix: (n, n), symmetric, float32 or float64, finite. Overwritten.
        count: 1 <= count <= n.

    Returns:
        Eigenvalues (count,) in descending order and eigenvectors (n, count), in `matrix`'s dtype
        and on its device.

    Raises:
        EigenError: LAPACK or cuSOLVER did not converge.
    """
    if matrix.device.type == "cuda":
        try:
            values, vectors = torch.linalg.eigh(matrix)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise EigenError(str(error)) from error
        return values[-count:].flip(0), vectors[:, -count:].flip(1)
    scale = _scale_to_one(matrix)  # xSYEVR loses eigenvalues near the ends of the dtype's range
    values, vectors = _syevr(matrix.cpu().mul_(scale), count)
    return values.div_(scale).to(matrix.device), vectors.to(matrix.device)


def _scale_to_one(matrix: Tensor) -> float:
    """The power of two, so that scaling is exact, that brings the largest entry near 1."""
    exponent = math.frexp(float(matrix.abs().max()))[1]
    return math.ldexp(1.0, -max(-LARGEST_SHIFT, min(LARGEST_SHIFT, exponent)))


def _syevr(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """LAPACK's xSYEVR (relatively robust representations) for the `count` largest pairs."""
    symmetric = matrix.contiguous().numpy()  # row-major or column-major is all one to it
    n, dtype = symmetric.shape[0], symmetric.dtype
    real: Any = ctypes.c_float if dtype == np.float32 else ctypes.c_double
    values = np.empty(n, dtype)
    vectors = np.empty((n, count), dtype, order="F")
    support = np.empty(2 * count, np.intc)
    work = np.empty(WORK_BLOCKS * n, dtype)
    integer_work = np.empty(INTEGER_WORK * n, np.intc)
    found, info = ctypes.c_int(), ctypes.c_int()
    _lapack_syevr(dtype.char)(
        b"V", b"I", b"U", _int(n), _data(symmetric), _int(n),
        ctypes.byref(real(0)), ctypes.byref(real(0)), _int(n - count + 1), _int(n),
        ctypes.byref(real(0)), ctypes.byref(found), _data(values), _data(vectors), _int(n),
        _data(support), _data(work), _int(work.size), _data(integer_work),
        _int(integer_work.size), ctypes.byref(info),
    )  # fmt: skip
    if info.value != 0 or found.value != count:
        raise EigenError(f"xSYEVR ended with {info.value} and {found.value} of {count} eigenpairs")
    descending = vectors[:, ::-1].copy(order="C")
    return torch.from_numpy(values[:count][::-1].copy()), torch.from_numpy(descending)


@cache
def _lapack_syevr(char: str) -> Any:
    """SciPy's ssyevr ('f') or dsyevr ('d') as a foreign function; calls release Python's lock."""
    capsule = cython_lapack.__pyx_capi__["ssyevr" if char == "f" else "dsyevr"]
    get_name = ctypes.pythonapi.PyCapsule_GetName
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = (
        ctypes.c_void_p,
        [ctypes.py_object, ctypes.c_char_p],
    )
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 21)(get_pointer(capsule, get_name(capsule)))


def _int(value: int) -> Any:
    return ctypes.byref(ctypes.c_int(value))


def _data(array: np.ndarray[Any, Any]) -> int:
    return array.ctypes.data
