"""A Gram matrix and its largest eigenpairs: what a truncated SVD needs, and no more.

For W (n, m), n <= m, the left singular vectors are the eigenvectors of W W^T (n, n) and the
squared singular values its eigenvalues: forming it costs n^2 m multiplications, which BLAS does
near the machine's peak, where bidiagonalising W itself runs at memory speed. The price is the
square: an eigenvalue is wrong by up to some rounding steps of the largest one, so that a singular
value below sqrt(step) of the largest is noise. `svp` guards against that.

SciPy's `syrk` and `eigh` do half of the work of `torch.matmul` and `torch.linalg.eigh`, but hold
Python's lock while they do, which would make the worker threads wait for one another. BLAS and
LAPACK themselves, through the function pointers that SciPy publishes for compiled callers, run
beside them. Where SciPy publishes none, or other ones than we know, PyTorch does the work.
"""

from __future__ import annotations

import ctypes
import math
import re
import sys
from functools import cache
from typing import Any

import numpy as np
import torch
from scipy.linalg import cython_blas, cython_lapack
from torch import Tensor

# xSYEVR's workspace in columns: (NB + 6) n lets all of it run blocked, NB being LAPACK's block
# size, 64 at most; it demands 26 n, and 10 n integers.
WORK_BLOCKS = 90
INTEGER_WORK = 10
CONVERTED_COLUMNS = 1024
LETTERS = {torch.float32: "s", torch.float64: "d"}
LARGEST_SHIFT = 120  # powers of two; the shift and its inverse are float32 numbers
# What the functions are given, all of it by address: characters, integers and reals.
SIGNATURES = {"syrk": "cciirrirri", "syevr": "cccirirriirirriiriiii"}
# as SciPy's C signatures name them
C_TYPES = {
    "c": re.compile(r"char"),
    "i": re.compile(r"(\w+_)?int(32|64)?(_t)?|long( long)?( int)?"),
    "r": re.compile(r"float|double|\w+_[sd]"),
}


class EigenError(ArithmeticError):
    """LAPACK did not converge."""


def gram(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Return W W^T (n, n) of a matrix W (n, m), formed in `dtype`.

    Args:
        rows: float32 or float64, row-major or column-major.
        dtype: float32 or float64, no narrower than `rows`.
    """
    syrk = _foreign(cython_blas, f"{LETTERS[dtype]}syrk", len(SIGNATURES["syrk"]))
    if rows.device.type != "cpu" or syrk is None:
        wide_rows = rows.to(dtype)
        return wide_rows @ wide_rows.T
    total = torch.zeros(rows.shape[0], rows.shape[0], dtype=dtype)
    # widened a block at a time, so that no second copy of the matrix is held
    for block in (rows,) if dtype == rows.dtype else rows.split(CONVERTED_COLUMNS, dim=1):
        _add_syrk(syrk, block.to(dtype), total)
    return total.tril_().add_(total.tril(-1).T)


def _add_syrk(syrk: Any, rows: Tensor, total: Tensor) -> None:
    """Add W W^T to the lower triangle of `total`, by BLAS's xSYRK."""
    row_major = rows.is_contiguous()
    if not (row_major or rows.T.is_contiguous()):
        rows, row_major = rows.contiguous(), True
    # BLAS counts by columns: it sees our lower triangle as the upper one, and W as its transpose
    n, m = rows.shape
    one = (ctypes.c_float if rows.dtype == torch.float32 else ctypes.c_double)(1.0)
    syrk(
        b"U", b"T" if row_major else b"N", _int(n), _int(m), ctypes.byref(one), rows.data_ptr(),
        _int(max(1, m if row_major else n)), ctypes.byref(one), total.data_ptr(), _int(max(1, n)),
    )  # fmt: skip


def largest_eigenpairs(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest eigenvalues of a symmetric matrix and their eigenvectors.

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
        return _eigh(matrix, count)
    scale = _scale_to_one(matrix)  # xSYEVR loses eigenvalues near the ends of the dtype's range
    scaled = matrix.cpu().mul_(scale)
    syevr = _foreign(cython_lapack, f"{LETTERS[matrix.dtype]}syevr", len(SIGNATURES["syevr"]))
    values, vectors = _eigh(scaled, count) if syevr is None else _syevr(syevr, scaled, count)
    return values.div_(scale).to(matrix.device), vectors.to(matrix.device)


def _scale_to_one(matrix: Tensor) -> float:
    """Return the power of two, so that scaling is exact, that brings the largest element near 1."""
    exponent = math.frexp(float(matrix.abs().max()))[1]
    return math.ldexp(1.0, -max(-LARGEST_SHIFT, min(LARGEST_SHIFT, exponent)))


def _eigh(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Take the `count` largest pairs of PyTorch's full decomposition."""
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise EigenError(str(error)) from error
    return values[-count:].flip(0), vectors[:, -count:].flip(1)


def _syevr(syevr: Any, matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Take the `count` largest pairs by LAPACK's xSYEVR.

    It reduces the matrix to tridiagonal form, and computes only the eigenvectors that are asked
    for, by bisection and inverse iteration (all n by relatively robust representations).
    """
    symmetric = matrix.contiguous().numpy()  # row-major or column-major is all one to it
    n, dtype = symmetric.shape[0], symmetric.dtype
    real: Any = ctypes.c_float if dtype == np.float32 else ctypes.c_double
    values = np.empty(n, dtype)
    vectors = np.empty((n, count), dtype, order="F")
    support = np.empty(2 * count, np.int64)
    work = np.empty(WORK_BLOCKS * n, dtype)
    integer_work = np.empty(INTEGER_WORK * n, np.int64)
    found, info = ctypes.c_int64(), ctypes.c_int64()
    # vectors too, of a range of indices, from the upper triangle; the bounds on values are not
    # used for such a range, and a tolerance of 0 stands for LAPACK's own
    syevr(
        b"V", b"I", b"U", _int(n), _data(symmetric), _int(n),
        ctypes.byref(real(0)), ctypes.byref(real(0)), _int(n - count + 1), _int(n),
        ctypes.byref(real(0)), ctypes.byref(found), _data(values), _data(vectors), _int(n),
        _data(support), _data(work), _int(work.size), _data(integer_work),
        _int(integer_work.size), ctypes.byref(info),
    )  # fmt: skip
    if info.value != 0 or found.value != count:
        code = ctypes.c_int32(info.value).value  # negative where an argument was refused
        raise EigenError(f"xSYEVR ended with {code} and {found.value} of {count} eigenpairs")
    descending = vectors[:, ::-1].copy(order="C")
    return torch.from_numpy(values[:count][::-1].copy()), torch.from_numpy(descending)


@cache
def _foreign(module: Any, name: str, arguments: int) -> Any:
    """Return a function of BLAS or LAPACK as SciPy links it; calls release Python's lock.

    SciPy hands it out in a capsule that has the C signature for its name. LAPACK's integers are
    32 or 64 bits wide, as it was built, and the signature may or may not tell which
    (`int *`, `int64_t *`, `blas_int *`). It need not: every integer we pass is 64 bits wide with
    an upper half of zeros, of which LAPACK on a little-endian machine reads and writes all or
    the lower half, and means the same number; arrays of integers have room for the wider ones.

    Returns:
        The function, which takes addresses; None where SciPy has no such function, the signature
        is not the one in SIGNATURES, or the machine is big-endian.
    """
    capsule = getattr(module, "__pyx_capi__", {}).get(name)
    if capsule is None or sys.byteorder != "little":
        return None
    get_name = ctypes.pythonapi.PyCapsule_GetName
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    signature = get_name(capsule)
    if signature is None or not _is_known(signature.decode(), SIGNATURES[name[1:]]):
        return None
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype, get_pointer.argtypes = (
        ctypes.c_void_p,
        [ctypes.py_object, ctypes.c_char_p],
    )
    prototype = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)
    return prototype(get_pointer(capsule, signature))


def _is_known(signature: str, kinds: str) -> bool:
    """Tell whether `void (char *, int *, ...)` takes pointers to what `kinds` lists."""
    match = re.fullmatch(r"void ?\((.*)\)", signature)
    types = match[1].split(",") if match else []
    return len(types) == len(kinds) and all(
        stripped.endswith("*") and C_TYPES[kind].fullmatch(stripped.removesuffix("*").strip())
        for stripped, kind in zip((item.strip() for item in types), kinds, strict=True)
    )


def _int(value: int) -> Any:
    return ctypes.byref(ctypes.c_int64(value))


def _data(array: np.ndarray[Any, Any]) -> int:
    return array.ctypes.data
