"""Pruning of stacks: each matrix by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import lors_error, rank_of, share

from lorsmerge_cli.core.low_rank_sparse import dense
from lorsmerge_cli.core.pruning import prune
from lorsmerge_cli.core.pruning.budget import budget
from lorsmerge_cli.core.pruning.repeated import RepeatedPruning

SHAPE = (3, 20, 32)
RATIOS = [("svp", 0.2, None), ("mp", None, 0.3), ("lors", 0.1, 0.2)]


def stack(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    values = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    values[1] *= 100  # one budget for all of them would keep nothing of the others
    return values.to(dtype)


@pytest.mark.parametrize(("pruner", "svp", "mp"), RATIOS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_every_matrix_has_its_own_budget(
    pruner: str, svp: float | None, mp: float | None, dtype: torch.dtype
) -> None:
    values = stack(dtype)
    keep = budget(SHAPE, svp, mp)
    assert keep == budget(SHAPE[1:], svp, mp)
    found = prune(values, pruner, keep)
    assert isinstance(found, torch.Tensor)
    assert found.shape == SHAPE
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    rank = rank_of(svp, SHAPE[1:]) if svp else 0
    kept = share(mp, 20 * 32) if mp else 0
    for index in range(3):
        matrix = values[index].double().numpy()
        slack = 1e-5 * float(np.abs(matrix).max())
        assert lors_error(found[index].double().numpy(), matrix, rank, kept, slack) < 1e-5
        # and to the bit what the matrix alone becomes, wherever it lies
        assert torch.equal(found[index], dense(prune(values[index].clone(), pruner, keep)))
    assert torch.equal(values, stack(dtype))


@pytest.mark.parametrize(("pruner", "svp", "mp"), RATIOS)
def test_again_and_again_as_once(pruner: str, svp: float | None, mp: float | None) -> None:
    values = stack()
    pruning = RepeatedPruning(budget(SHAPE, 0.3, None).rank)
    for _ in range(2):
        found = dense(pruning.prune(values, budget(SHAPE, svp, mp)))
        expected = dense(prune(values, pruner, budget(SHAPE, svp, mp)))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_one_matrix_that_is_kept_whole_is_all_of_them() -> None:
    values = stack()
    assert torch.equal(dense(prune(values, "lors", budget(SHAPE, 1.0, None))), values)
    assert torch.equal(dense(RepeatedPruning(20).prune(values, budget(SHAPE, 1.0, None))), values)
