"""A Gram matrix and its largest eigenpairs: what a truncated SVD needs, and no more.

SciPy's `syrk` and `eigh` do half of the work of `torch.matmul` and `torch.linalg.eigh`, but hold
Python's lock while they do, which would make the worker threads wait for one another. BLAS and
LAPACK themselves, through the function pointers that SciPy publishes for compiled callers, run
beside them.
"""

from __future__ import annotations

import ctypes
import math
from functools import cache
from typing import Any

import numpy as np
import torch
from scipy.linalg import cython_blas, cython_lapack
from torch import Tensor

WORK_BLOCKS = 90  # workspace in columns; LAPACK's minimum is 26, its blocked code uses more
INTEGER_WORK = 10
CONVERTED_COLUMNS = 1024
LETTERS = {torch.float32: "s", torch.float64: "d"}
LARGEST_SHIFT = 120  # powers of two; the shift and its inverse are float32 numbers


class EigenError(ArithmeticError):
    """LAPACK did not converge."""


def gram(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """W W^T (n, n) of a matrix W (n, m), formed in `dtype`.

    Args:
        rows: float32 or float64, row-major or column-major.
        dtype: float32 or float64, no narrower than `rows`.
    """
    if rows.device.type != "cpu":
        wide_rows = rows.to(dtype)
        return wide_rows @ wide_rows.T
    total = torch.zeros(rows.shape[0], rows.shape[0], dtype=dtype)
    # widened a block at a time, so that no second copy of the matrix is held
    for block in (rows,) if dtype == rows.dtype else rows.split(CONVERTED_COLUMNS, dim=1):
        _add_syrk(block.to(dtype), total)
    return total.tril_().add_(total.tril(-1).T)


def _add_syrk(rows: Tensor, total: Tensor) -> None:
    """BLAS's xSYRK: the lower triangle of total += W W^T."""
    row_major = rows.is_contiguous()
    if not (row_major or rows.T.is_contiguous()):
        rows, row_major = rows.contiguous(), True
    # BLAS counts by columns: it sees our lower triangle as the upper one, and W as its transpose
    n, m = rows.shape
    one = (ctypes.c_float if rows.dtype == torch.float32 else ctypes.c_double)(1.0)
    _foreign(cython_blas, f"{LETTERS[rows.dtype]}syrk", 10)(
        b"U", b"T" if row_major else b"N", _int(n), _int(m), ctypes.byref(one), rows.data_ptr(),
        _int(max(1, m if row_major else n)), ctypes.byref(one), total.data_ptr(), _int(n),
    )  # fmt: skip


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
    _foreign(cython_lapack, f"{LETTERS[matrix.dtype]}syevr", 21)(
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
def _foreign(module: Any, name: str, arguments: int) -> Any:
    """A function of BLAS or LAPACK as SciPy links it; calls release Python's lock."""
    capsule = module.__pyx_capi__[name]
    get_name = ctypes.pythonapi.PyCapsule_GetName
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = (
        ctypes.c_void_p,
        [ctypes.py_object, ctypes.c_char_p],
    )
    signature = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)
    return signature(get_pointer(capsule, get_name(capsule)))


def _int(value: int) -> Any:
    return ctypes.byref(ctypes.c_int(value))


def _data(array: np.ndarray[Any, Any]) -> int:
    return array.ctypes.data
