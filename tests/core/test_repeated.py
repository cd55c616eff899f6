"""Repeated pruning of one matrix equals separate prunings."""

from __future__ import annotations

import pytest
import torch

from lorsmerge_cli.core.low_rank_sparse import dense
from lorsmerge_cli.core.pruning import prune, repeated
from lorsmerge_cli.core.pruning.budget import budget
from lorsmerge_cli.core.pruning.repeated import RepeatedPruning

RATIOS = [(0.05, None), (0.3, None), (None, 0.1), (None, 0.6), (0.05, 0.4), (0.3, 0.1), (1.0, 0.2)]
PRUNER = {(True, True): "lors", (True, False): "svp", (False, True): "mp"}
# of the matrix's norm: the eigensolver is asked for more vectors than are used
CLOSE = 1e-5


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16), (1, 7)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_every_budget_is_met_as_by_prune(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    before = matrix.clone()
    pruning = RepeatedPruning(budget(shape, 0.3, None).rank)
    for svp, mp in (*RATIOS, *reversed(RATIOS)):
        keep = budget(shape, svp, mp)
        found = dense(pruning.prune(matrix, keep))
        expected = dense(prune(matrix, PRUNER[svp is not None, mp is not None], keep))
        error = (found - expected).norm() / matrix.double().norm()
        assert error < CLOSE
        assert found.dtype == expected.dtype
    assert matrix.equal(before)


def test_it_is_decomposed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = []
    real = repeated.truncated_svd

    def record(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        ranks.append(rank)
        return real(matrix, rank)

    monkeypatch.setattr(repeated, "truncated_svd", record)
    matrix = torch.randn(30, 30, generator=torch.Generator().manual_seed(0))
    pruning = RepeatedPruning(9)
    pruning.prune(matrix, budget((30, 30), None, 0.5))
    assert ranks == []
    for svp in (0.1, 0.3, 0.2):
        pruning.prune(matrix, budget((30, 30), svp, 0.4))
    assert ranks == [9]
