"""The largest eigenpairs against NumPy's full decomposition."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from reference import gaussian, with_spectrum
from scipy.linalg import cython_blas, cython_lapack

from lorsmerge_cli.core import eigen
from lorsmerge_cli.core.eigen import gram, largest_eigenpairs, many_eigenpairs

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13}
FINDS = [largest_eigenpairs, many_eigenpairs]
each = pytest.mark.parametrize("find", FINDS, ids=lambda find: find.__name__)


def symmetric(kind: str, n: int) -> torch.Tensor:
    if kind == "gram":
        w = gaussian(n, 2 * n, seed=n)
        return w @ w.T
    if kind == "indefinite":
        w = gaussian(n, n, seed=n)
        return w + w.T
    if kind == "wide":
        w = with_spectrum(n, n, [10.0**-i for i in range(n)], seed=n)
        return w @ w.T
    if kind == "coupled":  # with off-diagonals of 1e-4 of the norm
        beside = torch.diag(torch.full((n - 1,), 1e-4), 1)
        return (torch.eye(n) + beside + beside.T).double()
    return {
        "zero": torch.zeros(n, n),
        "identity": torch.eye(n),
        "ones": torch.ones(n, n),
        "diagonal": torch.diag(torch.arange(n, 0, -1) - n / 2),
    }[kind].double()


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "kind", ["gram", "indefinite", "wide", "zero", "identity", "ones", "diagonal"]
)
@pytest.mark.parametrize(
    ("n", "count"), [(1, 1), (2, 1), (2, 2), (7, 1), (7, 4), (7, 7), (60, 1), (60, 13), (60, 60)]
)
def test_against_numpy(n: int, count: int, kind: str, dtype: torch.dtype, find) -> None:
    exact = symmetric(kind, n)
    values, vectors = find(exact.to(dtype, copy=True), count)
    assert values.shape == (count,)
    assert vectors.shape == (n, count)
    assert values.dtype == vectors.dtype == dtype
    expected = np.linalg.eigh(exact.numpy())[0][::-1][:count]
    size = float(np.linalg.norm(exact.numpy(), 2)) or 1.0
    assert np.abs(values.double().numpy() - expected).max() <= TOLERANCE[dtype] * size
    assert (values[:-1] >= values[1:]).all()
    wide = vectors.double()
    error = (exact @ wide - wide * values.double()).norm(dim=0).max()
    assert float(error) <= 2 * TOLERANCE[dtype] * size
    assert torch.allclose(wide.T @ wide, torch.eye(count).double(), atol=50 * TOLERANCE[dtype])


@each
@pytest.mark.parametrize("exponent", [-110, -80, -54, 0, 54, 110])
@pytest.mark.parametrize("kind", ["gram", "indefinite", "coupled"])
def test_any_magnitude(kind: str, exponent: int, find) -> None:
    """In float32 the square of anything below 1e-19 underflows: LAPACK treats such an off-diagonal as zero."""
    exact = symmetric(kind, 8) * 2.0**exponent
    values, vectors = find(exact.float(), 3)
    wide, size = vectors.double(), float(exact.norm())
    error = (exact @ wide - wide * values.double()).norm(dim=0).max()
    assert float(error) <= 2 * TOLERANCE[torch.float32] * size
    expected = np.linalg.eigvalsh(exact.numpy())[::-1][:3]
    assert np.abs(values.double().numpy() - expected).max() <= TOLERANCE[torch.float32] * size


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_transposed_storage(dtype: torch.dtype, find) -> None:
    exact = symmetric("gram", 9)
    transposed = exact.to(dtype).T.contiguous().T
    values, _ = find(transposed, 3)
    assert values.double().numpy() == pytest.approx(np.linalg.eigvalsh(exact)[::-1][:3], rel=1e-5)


@each
def test_calls_run_beside_each_other(find) -> None:
    """No state is shared between the threads of a pool."""
    matrices = [symmetric("gram", 40 + i) for i in range(8)]
    alone = [find(matrix.clone(), 6) for matrix in matrices]
    together: list = [None] * len(matrices)

    def work(i: int) -> None:
        together[i] = find(matrices[i].clone(), 6)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(matrices))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (values, vectors), (values_too, vectors_too) in zip(alone, together, strict=True):
        assert values_too.numpy() == pytest.approx(values.numpy(), rel=1e-12)
        cosines = (vectors * vectors_too).sum(dim=0).abs()
        assert cosines.numpy() == pytest.approx(1, abs=1e-9)


# NumPy's wheels bring an OpenBLAS with 64-bit integers
ILP64 = sorted(Path(np.__file__).parent.parent.glob("numpy.libs/libscipy_openblas64*"))
SYRK = "void (char *, char *, {0}, {0}, {1} *, {1} *, {0}, {1} *, {1} *, {0})"
SYEVR = (
    "void (char *, char *, char *, {0}, {1} *, {0}, {1} *, {1} *, {0}, {0}, {1} *, {0}, {1} *, "
    "{1} *, {0}, {0}, {1} *, {0}, {0}, {0}, {0})"
)


def module_of(signatures: dict[str, bytes | None], library: ctypes.CDLL | None) -> ModuleType:
    """Return a module that publishes functions as Cython's do; None stands for a capsule without a name."""
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = (
        ctypes.py_object,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p],
    )
    module = ModuleType("stand_in")
    module.signatures = signatures  # a capsule does not keep its name alive
    module.__pyx_capi__ = {
        name: new(
            ctypes.cast(getattr(library, f"scipy_{name}_64_"), ctypes.c_void_p) if library else 1,
            signature,
            None,
        )
        for name, signature in signatures.items()
    }
    return module


def stand_in(monkeypatch: pytest.MonkeyPatch, syrk: str, syevr: str, library=None) -> None:
    modules = {}
    for module, form in (("cython_blas", syrk), ("cython_lapack", syevr)):
        name = "syrk" if module == "cython_blas" else "syevr"
        signatures = {f"{letter}{name}": form.encode() for letter in "sd"}
        modules[module] = module_of(signatures, library)
    monkeypatch.setattr(eigen, "_scipy", modules.__getitem__)


@pytest.fixture
def _without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eigen, "_scipy", ModuleType)


def check_pairs(w: torch.Tensor, dtype: torch.dtype, count: int) -> None:
    """Compare the Gram matrix and eigenpairs of W (n, m) with NumPy's in float64."""
    exact = w.double().numpy() @ w.double().numpy().T
    size = float(np.linalg.norm(exact, 2)) or 1.0
    found = gram(w, dtype)
    assert found.dtype == dtype
    assert np.abs(found.double().numpy() - exact).max() <= TOLERANCE[dtype] * size
    expected = np.linalg.eigvalsh(exact)[::-1][:count]
    for find in FINDS:
        values, vectors = find(found.clone(), count)
        assert values.dtype == vectors.dtype == dtype
        assert vectors.shape == (len(exact), count)
        assert np.abs(values.double().numpy() - expected).max() <= TOLERANCE[dtype] * size
        wide = vectors.double()
        error = (torch.from_numpy(exact) @ wide - wide * values.double()).norm(dim=0).max()
        assert float(error) <= 2 * TOLERANCE[dtype] * size
        assert torch.allclose(wide.T @ wide, torch.eye(count).double(), atol=50 * TOLERANCE[dtype])


def matrices() -> Iterator[tuple[str, torch.Tensor, int]]:
    """Yield a name, W (n, m) and a number of pairs."""
    yield "one element", gaussian(1, 1, seed=1), 1
    yield "one row", gaussian(1, 40, seed=1), 1
    yield "two rows, one pair", gaussian(2, 3, seed=1), 1
    yield "two rows, both pairs", gaussian(2, 3, seed=1), 2
    yield "all pairs", gaussian(33, 50, seed=2), 33
    yield "few pairs", gaussian(120, 240, seed=3), 7
    yield "rank 2", gaussian(20, 2, seed=4) @ gaussian(2, 30, seed=5), 5
    yield "rank 0", torch.zeros(9, 12).double(), 3
    yield "tiny", gaussian(12, 20, seed=6) * 1e-15, 4
    yield "huge", gaussian(12, 20, seed=6) * 1e15, 4
    yield "wider than a block", gaussian(5, 2500, seed=7), 2


CASES = [pytest.param(w, count, id=name) for name, w, count in matrices()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("w", "count"), CASES)
class TestAnyBuildOfScipy:
    """The pairs do not depend on SciPy's LAPACK, or on whether SciPy publishes it."""

    def test_this_one(self, w: torch.Tensor, count: int, dtype: torch.dtype) -> None:
        check_pairs(w.float() if dtype == torch.float32 else w, dtype, count)

    def test_float64_from_float32(self, w: torch.Tensor, count: int, dtype: torch.dtype) -> None:
        check_pairs(w.float(), torch.float64 if dtype == torch.float32 else dtype, count)

    @pytest.mark.usefixtures("_without_scipy")
    def test_none(self, w: torch.Tensor, count: int, dtype: torch.dtype) -> None:
        check_pairs(w.float() if dtype == torch.float32 else w, dtype, count)

    @pytest.mark.skipif(not ILP64, reason="this NumPy brings no OpenBLAS")
    @pytest.mark.parametrize("integer", ["int64_t *", "blas_int *", "npy_int64 *", "long long *"])
    def test_64_bit_integers(
        self,
        w: torch.Tensor,
        count: int,
        dtype: torch.dtype,
        integer: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        library = ctypes.CDLL(str(ILP64[0]))
        forms = [form.format(integer, "float") for form in (SYRK, SYEVR)]
        stand_in(monkeypatch, *forms, library)
        assert eigen._foreign(eigen._scipy("cython_lapack"), "ssyevr", 21) is not None
        check_pairs(w.float() if dtype == torch.float32 else w, dtype, count)

    @pytest.mark.skipif(not ILP64, reason="this NumPy brings no OpenBLAS")
    def test_64_bit_integers_that_no_signature_tells_of(
        self, w: torch.Tensor, count: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        library = ctypes.CDLL(str(ILP64[0]))

        def foreign(module: ModuleType, name: str, arguments: int):
            address = ctypes.cast(getattr(library, f"scipy_{name}_64_"), ctypes.c_void_p).value
            return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)(address)

        monkeypatch.setattr(eigen, "_foreign", foreign)
        for _ in range(5):
            check_pairs(w.float() if dtype == torch.float32 else w, dtype, count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("hidden", ["syrk", "syevr", "sytrd", "stedc", "ormtr"])
def test_pytorch_decomposes_where_scipy_hides_a_symbol(
    monkeypatch: pytest.MonkeyPatch, hidden: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(eigen, "_foreign", eigen._foreign.__wrapped__)  # without its cache
    calls: list[int] = []
    real = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: calls.append(1) or real(matrix))
    check_pairs(gaussian(12, 30, seed=1).to(dtype), dtype, 4)
    assert not calls  # while it has them, LAPACK is asked for those pairs alone
    for module in (cython_blas, cython_lapack):
        left = {k: v for k, v in module.__pyx_capi__.items() if k[1:] != hidden}
        monkeypatch.setattr(module, "__pyx_capi__", left)
    check_pairs(gaussian(12, 30, seed=1).to(dtype), dtype, 4)
    assert len(calls) == (hidden == "syevr")


@pytest.mark.parametrize("letter", ["s", "d"])
@pytest.mark.parametrize(
    ("module", "name"),
    [
        (cython_blas, "syrk"),
        *((cython_lapack, name) for name in eigen.SIGNATURES if name != "syrk"),
    ],
)
def test_this_scipys_functions_are_used(module: ModuleType, name: str, letter: str) -> None:
    assert eigen._foreign(module, letter + name, len(eigen.SIGNATURES[name])) is not None


@pytest.mark.parametrize(
    "form",
    [
        "",
        "int64_t",
        "void (char *)",
        SYEVR.format("int *", "float").replace("void", "int"),  # f2c's calling convention
        SYEVR.format("int *", "float").replace(")", ", int)"),  # with lengths of strings
        SYEVR.format("int", "float"),  # by value
        SYEVR.format("int *", "float").replace("char *", "int *", 1),
        SYEVR.format("float *", "float"),
        SYEVR.format("short *", "float"),
        SYEVR.format("int *", "double complex"),
    ],
)
def test_a_signature_that_is_not_understood_is_not_called(
    monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """The address is not that of a function: a call would end the process."""
    stand_in(monkeypatch, form, form)
    check_pairs(gaussian(12, 30, seed=1).float(), torch.float32, 4)


def test_a_big_endian_machine_goes_without(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, SYRK.format("int *", "float"), SYEVR.format("int *", "float"))
    monkeypatch.setattr(eigen.sys, "byteorder", "big")
    check_pairs(gaussian(12, 30, seed=1).float(), torch.float32, 4)


def test_what_lapack_refuses_is_an_error() -> None:
    """A refused argument is a negative number, of 32 or 64 bits."""
    for code in (-4, 2**32 - 4, 7):

        def refuse(*arguments: object, code: int = code) -> None:
            arguments[-1]._obj.value = code

        with pytest.raises(eigen.EigenError, match="-4" if code != 7 else "7"):
            eigen._syevr(refuse, torch.eye(3), 1)
        with pytest.raises(eigen.EigenError, match="xSYTRD"):
            eigen._divided(refuse, refuse, refuse, torch.eye(3), 1)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gram_matrix_of_nothing(shape: tuple[int, int], dtype: torch.dtype) -> None:
    assert torch.equal(
        gram(torch.zeros(shape), dtype), torch.zeros(shape[0], shape[0], dtype=dtype)
    )


@pytest.mark.gpu
@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "count"), [(1, 1), (60, 1), (60, 13), (60, 60)])
def test_cuda_agrees_with_the_cpu(n: int, count: int, dtype: torch.dtype, find) -> None:
    matrix = symmetric("gram", n).to(dtype)
    values, vectors = find(matrix.cuda(), count)
    assert values.device.type == vectors.device.type == "cuda"
    expected, _ = largest_eigenpairs(matrix.clone(), count)
    assert values.cpu().numpy() == pytest.approx(expected.numpy(), rel=1e-4)
    error = (matrix.cuda() @ vectors - vectors * values).norm() / matrix.norm()
    assert float(error) < 10 * TOLERANCE[dtype]
