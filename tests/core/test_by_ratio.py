"""`lors`, `svp` and `mp` of one matrix, against a plain float64 SVD and a sort."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lorsmerge_cli import lors, mp, svp
from lorsmerge_cli.core.low_rank_sparse import LowRankSparse
from lorsmerge_cli.errors import NonFinite, UsageFault

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def random_matrix(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def low_rank(matrix: Tensor, rank: int) -> Tensor:
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


def largest(matrix: Tensor, count: int) -> Tensor:
    order = matrix.abs().flatten().argsort(descending=True)[:count]
    return torch.zeros_like(matrix).flatten().index_put((order,), matrix.flatten()[order]).view_as(
        matrix
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(20, 31), (31, 20)])
def test_parts_of_a_matrix(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix = random_matrix(*shape, dtype=dtype)
    before = matrix.clone()
    wide = matrix.double()
    near = {"atol": 1e-4, "rtol": 0.0, "check_dtype": False}
    torch.testing.assert_close(svp(matrix, 0.2).to_dense(), low_rank(wide, 4), **near)
    torch.testing.assert_close(mp(matrix, 0.1).to_dense(), largest(wide, 62), **near)
    left = wide - low_rank(wide, 4)
    wanted = low_rank(wide, 4) + largest(left, 62)
    found = lors(matrix, svp=0.2, mp=0.1)
    torch.testing.assert_close(found.to_dense(), wanted, **near)
    assert isinstance(found, LowRankSparse)
    assert found.to_dense().dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(matrix, before)


def test_defaults_are_ratios_of_the_paper() -> None:
    matrix = random_matrix(40, 50)
    for found, rank, kept in (
        (lors(matrix), 2, 800),
        (svp(matrix), 2, None),
        (mp(matrix), None, 800),
    ):
        assert isinstance(found, LowRankSparse)
        assert (None if found.left is None else found.left.shape[1]) == rank
        assert (None if found.mask is None else int(found.mask.sum())) == kept


def test_a_parameter_of_a_model() -> None:
    weight = torch.nn.Linear(8, 6).weight
    found = lors(weight, svp=0.2, mp=0.3).to_dense()
    assert not found.requires_grad
    assert torch.equal(found, lors(weight.detach(), svp=0.2, mp=0.3).to_dense())


def test_all_of_a_matrix_is_a_copy() -> None:
    matrix = random_matrix(4, 4)
    found = lors(matrix, svp=1.0, mp=0.2)
    assert torch.equal(found.to_dense(), matrix)
    found.to_dense().zero_()
    assert matrix.any()


def test_a_stack() -> None:
    stack = random_matrix(3, 8, 6)
    found = lors(stack, svp=0.2, mp=0.3)
    assert torch.equal(found.to_dense(), torch.stack([lors(m, 0.2, 0.3).to_dense() for m in stack]))


@pytest.mark.parametrize(
    "settings", [{"svp": 1.5}, {"mp": -0.1}, {"svp": float("nan")}, {"svp": 0, "mp": 0}]
)
def test_ratios_out_of_range(settings: dict[str, float]) -> None:
    with pytest.raises(UsageFault, match=r"not between 0 and 1|keep nothing"):
        lors(random_matrix(4, 4), **settings)


@pytest.mark.parametrize(
    "wrong", [torch.ones(4), torch.ones(4, 4, dtype=torch.int64), torch.tensor(1.0)]
)
def test_no_matrix_of_floats(wrong: Tensor) -> None:
    with pytest.raises(UsageFault, match="not a matrix of floats"):
        svp(wrong)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_no_number(value: float) -> None:
    matrix = random_matrix(4, 4)
    matrix[1, 2] = value
    with pytest.raises(NonFinite):
        mp(matrix)
