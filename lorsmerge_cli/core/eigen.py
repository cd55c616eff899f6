"""A Gram matrix and its largest eigenpairs: all that a truncated SVD needs.

Of W (n, m), n <= m, with the SVD W = U Sigma V^T, the Gram matrix is W W^T = U Sigma^2 U^T (n, n):
its eigenvectors are the left singular vectors, its eigenvalues the squared singular values. The
right factor follows by one product, U_r^T W = Sigma_r V_r^T, so the approximation of rank r is
U_r (U_r^T W). Forming the Gram matrix takes n^2 m multiplications, which BLAS does near the
machine's peak; bidiagonalising W itself, the first step of an SVD, runs at memory speed. The price
is the square: an eigenvalue is wrong by some rounding steps of the largest one, so a singular value
below sqrt(step) of the largest is noise. `truncated_svd` guards against that.

BLAS's xSYRK and LAPACK's xSYEVR, which compute one triangle and a range of eigenpairs, do half of
the work of `torch.matmul` and `torch.linalg.eigh`. Where many eigenvectors are wanted, xSTEDC finds
them by divide and conquer, mostly in matrix products, and xORMTR turns those back that are wanted.
SciPy's Python functions for these hold Python's lock, so worker threads would wait for one another;
the function pointers that SciPy publishes for compiled callers do not. If SciPy publishes none, or
with signatures unknown here, PyTorch does the work.
"""

from __future__ import annotations

import ctypes
import math
import re
import sys
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

# xSYEVR needs a workspace of 26 n reals and 10 n integers; with (NB + 6) n reals, NB being LAPACK's
# block size (at most 64), all of it runs blocked.
WORK_BLOCKS = 90
INTEGER_WORK = 10
FEW = 6  # xSYEVR is as quick where one in so many eigenpairs is wanted, and quicker for fewer
CONVERTED_COLUMNS = 1024
LETTERS = {torch.float32: "s", torch.float64: "d"}
LARGEST_SHIFT = 120  # exponent of two, so that the factor and its inverse are float32 numbers
# Types of the arguments, all passed by address: c for characters, i for integers, r for reals.
SIGNATURES = {
    "syrk": "cciirrirri", "syevr": "cccirirriirirriiriiii", "sytrd": "cirirrrrii",
    "stedc": "cirrririiii", "ormtr": "ccciirirririi",
}  # fmt: skip
# their names in SciPy's C signatures
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

    Example:
        >>> gram(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.float32)
        tensor([[5., 2.],
                [2., 1.]])
    """
    syrk = _foreign(_scipy("cython_blas"), f"{LETTERS[dtype]}syrk", len(SIGNATURES["syrk"]))
    if rows.device.type != "cpu" or syrk is None:
        wide_rows = rows.to(dtype)
        return wide_rows @ wide_rows.T
    total = torch.zeros(rows.shape[0], rows.shape[0], dtype=dtype)
    # converted in blocks, so that no second copy of the matrix is held
    for block in (rows,) if dtype == rows.dtype else rows.split(CONVERTED_COLUMNS, dim=1):
        _add_syrk(syrk, block.to(dtype), total)
    return total.tril_().add_(total.tril(-1).T)


def _add_syrk(syrk: Any, rows: Tensor, total: Tensor) -> None:
    """Add W W^T to the lower triangle of `total`, by BLAS's xSYRK."""
    row_major = rows.is_contiguous()
    if not (row_major or rows.T.is_contiguous()):
        rows, row_major = rows.contiguous(), True
    # C := alpha A A^T + beta C, or with TRANS = "T" alpha A^T A + beta C, in column-major order:
    # our lower triangle is its upper one, and a row-major W (n, m) is its A (m, n), so that
    # A^T A = W W^T; a column-major W is A itself. Arguments: UPLO, TRANS, N, K = m, ALPHA, A,
    # LDA (the stride of A's columns), BETA, C, LDC.
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

    Example:
        >>> largest_eigenpairs(torch.diag(torch.tensor([1.0, 4.0, 9.0])), 2)[0]
        tensor([9., 4.])
    """
    if matrix.device.type == "cuda":
        return _eigh(matrix, count)
    scale = _scale_to_one(matrix)  # xSYEVR loses eigenvalues near the ends of the dtype's range
    scaled = matrix.cpu().mul_(scale)
    syevr = _foreign(
        _scipy("cython_lapack"), f"{LETTERS[matrix.dtype]}syevr", len(SIGNATURES["syevr"])
    )
    values, vectors = _eigh(scaled, count) if syevr is None else _syevr(syevr, scaled, count)
    return values.div_(scale).to(matrix.device), vectors.to(matrix.device)


def many_eigenpairs(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return what `largest_eigenpairs` does but for roundings, sooner where `count` is not small.

    Args:
        matrix: (n, n), symmetric, float32 or float64, finite. Overwritten.
        count: 1 <= count <= n.

    Raises:
        EigenError: LAPACK or cuSOLVER did not converge.

    Example:
        >>> many_eigenpairs(torch.diag(torch.tensor([1.0, 4.0, 9.0])), 2)[0]
        tensor([9., 4.])
    """
    sytrd, stedc, ormtr = (
        _foreign(_scipy("cython_lapack"), LETTERS[matrix.dtype] + name, len(SIGNATURES[name]))
        for name in ("sytrd", "stedc", "ormtr")
    )
    missing = sytrd is None or stedc is None or ormtr is None
    if missing or matrix.device.type == "cuda" or FEW * count < len(matrix):
        return largest_eigenpairs(matrix, count)
    scale = _scale_to_one(matrix)
    values, vectors = _divided(sytrd, stedc, ormtr, matrix.cpu().mul_(scale), count)
    return values.div_(scale).to(matrix.device), vectors.to(matrix.device)


def _scale_to_one(matrix: Tensor) -> float:
    """Return a factor that brings the largest element near 1: a power of two, which is exact."""
    exponent = math.frexp(float(matrix.abs().max()))[1]
    return math.ldexp(1.0, -max(-LARGEST_SHIFT, min(LARGEST_SHIFT, exponent)))


def _eigh(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest pairs of PyTorch's full decomposition."""
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise EigenError(str(error)) from error
    return values[-count:].flip(0), vectors[:, -count:].flip(1)


def _syevr(syevr: Any, matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest pairs by LAPACK's xSYEVR.

    It reduces the matrix to tridiagonal form, and computes only the eigenvectors that are asked
    for, by bisection and inverse iteration (all n by relatively robust representations).
    """
    symmetric = matrix.contiguous().numpy()  # equal in row-major and in column-major order
    n, dtype = symmetric.shape[0], symmetric.dtype
    real: Any = ctypes.c_float if dtype == np.float32 else ctypes.c_double
    values = np.empty(n, dtype)
    vectors = np.empty((n, count), dtype, order="F")
    support = np.empty(2 * count, np.int64)
    work = np.empty(WORK_BLOCKS * n, dtype)
    integer_work = np.empty(INTEGER_WORK * n, np.int64)
    found, info = ctypes.c_int64(), ctypes.c_int64()
    # JOBZ = V: vectors too; RANGE = I: of indices IL to IU, ascending from 1; UPLO = U; N; A; LDA;
    # VL and VU (bounds for RANGE = V, not used); IL; IU; ABSTOL = 0 (LAPACK's own tolerance);
    # then the results M (how many were found), W (the values), Z (the vectors), LDZ, ISUPPZ (rows
    # where each vector is not zero); WORK, LWORK, IWORK, LIWORK; INFO
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


def _divided(
    sytrd: Any, stedc: Any, ormtr: Any, matrix: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Return the `count` largest pairs by divide and conquer.

    The matrix is reduced to a tridiagonal one, Q^T A Q, all eigenvectors of that are found, and Q
    is applied to those that are wanted.
    """
    symmetric = matrix.contiguous().numpy()
    n, dtype = symmetric.shape[0], symmetric.dtype
    diagonal, beside, factors = (np.empty(n, dtype) for _ in range(3))
    work, info = np.empty(WORK_BLOCKS * n, dtype), ctypes.c_int64()
    # UPLO; N; A, which gets the reflectors that Q is made of; LDA; D and E, the tridiagonal matrix;
    # TAU, the reflectors' factors; WORK, LWORK; INFO
    sytrd(
        b"L", _int(n), _data(symmetric), _int(n), _data(diagonal), _data(beside), _data(factors),
        _data(work), _int(work.size), ctypes.byref(info),
    )  # fmt: skip
    _check(info, "xSYTRD")
    vectors = np.empty((n, n), dtype, order="F")
    halves = np.empty(1 + 4 * n + n * n, dtype)
    integer_work = np.empty(3 + 5 * n, np.int64)
    # COMPZ = I: of the tridiagonal matrix itself; N; D, which gets the values, ascending; E; Z, the
    # vectors; LDZ; WORK, LWORK, IWORK, LIWORK; INFO
    stedc(
        b"I", _int(n), _data(diagonal), _data(beside), _data(vectors), _int(n), _data(halves),
        _int(halves.size), _data(integer_work), _int(integer_work.size), ctypes.byref(info),
    )  # fmt: skip
    del halves
    _check(info, "xSTEDC")
    wanted = vectors[:, n - count :]
    # SIDE = L: Q C; UPLO; TRANS = N; M and N of C; A, LDA and TAU of xSYTRD; C, overwritten; LDC;
    # WORK, LWORK; INFO
    ormtr(
        b"L", b"L", b"N", _int(n), _int(count), _data(symmetric), _int(n), _data(factors),
        _data(wanted), _int(n), _data(work), _int(work.size), ctypes.byref(info),
    )  # fmt: skip
    _check(info, "xORMTR")
    descending = wanted.T[::-1].copy(order="C")
    return torch.from_numpy(diagonal[::-1][:count].copy()), torch.from_numpy(descending).T


def _check(info: Any, name: str) -> None:
    if info.value != 0:
        raise EigenError(f"{name} ended with {ctypes.c_int32(info.value).value}")


def _scipy(name: str) -> ModuleType:
    """Return a module of `scipy.linalg`, which takes 0.2 s that most merges need not spend."""
    return import_module(f"scipy.linalg.{name}")


@cache
def _foreign(module: Any, name: str, arguments: int) -> Any:
    """Return a function of the BLAS or LAPACK that SciPy is linked to; calls release Python's lock.

    SciPy publishes it in a capsule whose name is the C signature. LAPACK's integers are 32 or 64
    bits wide, depending on its build, and the signature does not always tell which (`int *`,
    `int64_t *`, `blas_int *`). It need not: every integer passed here is 64 bits wide with an upper
    half of zeros. On a little-endian machine LAPACK reads and writes all of it or the lower half,
    which is the same number; arrays of integers have room for the wider ones.

    Returns:
        The function, which takes addresses; None if SciPy has no such function, if the signature
        is not the one in SIGNATURES, or if the machine is big-endian.
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
    """Tell whether `void (char *, int *, ...)` takes pointers to the types of `kinds`."""
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
