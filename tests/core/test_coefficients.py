"""The rules that choose coefficients, against plain formulas, and what must hold of each."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import gaussian

from lorsmerge_cli.core.coefficients import RULES
from lorsmerge_cli.core.coefficients.equalise import equalise
from lorsmerge_cli.core.coefficients.lines import lines
from lorsmerge_cli.core.coefficients.metagpt import metagpt
from lorsmerge_cli.core.coefficients.model_stock import model_stock
from lorsmerge_cli.core.combining import COMBINERS
from lorsmerge_cli.core.merging import Term, merge_tensor
from lorsmerge_cli.core.methods import METHODS

PLAIN = [name for name, m in METHODS.items() if m.pruner is None and not m.statistics]
SHAPES = [(1,), (1, 50), (50, 1), (24, 40), (4, 3, 5), ()]
NORMS = st.lists(st.floats(1e-150, 1e150), min_size=1, max_size=10)


def test_every_rule_has_one_function_and_its_formula() -> None:
    for name, rule in RULES.items():
        given_ = [f for f in (rule.by_depth, rule.by_norms, rule.by_deltas) if f is not None]
        assert len(given_) == 1, name
        assert rule.formula, name
        assert rule.input in ("depth", "norms", "agreement")


@pytest.mark.parametrize("blocks", [1, 2, 4, 12, 32])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.4), (0.2, -0.7), (0.0, 1.0), (1.0, 0.0)])
def test_lines(blocks: int, alpha: float, beta: float) -> None:
    for block in range(blocks):
        wanted = reference.lines(block, blocks, alpha, beta)
        assert lines(block, blocks, alpha=alpha, beta=beta) == pytest.approx(wanted, abs=1e-15)
    assert lines(0, 0, alpha=alpha, beta=beta) == alpha  # outside of blocks
    assert lines(0, blocks, alpha=alpha, beta=beta) == alpha


@settings(max_examples=100, deadline=None, derandomize=True)
@given(norms=NORMS)
def test_factors_by_norms(norms: list[float]) -> None:
    shares, equal = metagpt(norms), equalise(norms)
    assert math.fsum(shares) == pytest.approx(1.0)
    rms = max(norms) * math.sqrt(math.fsum((n / max(norms)) ** 2 for n in norms) / len(norms))
    for norm, share, factor in zip(norms, shares, equal, strict=True):
        assert factor * norm == pytest.approx(rms)
        assert share == pytest.approx((norm / rms) ** 2 / len(norms))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(norms=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=10), data=st.data())
@pytest.mark.parametrize("rule", [metagpt, equalise])
def test_norms_in_another_order_or_unit(rule, norms: list[float], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(norms))))
    found = rule(norms)
    assert rule([norms[n] for n in order]) == pytest.approx([found[n] for n in order])
    assert rule([1000 * norm for norm in norms]) == pytest.approx(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 2, 5, 10])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agreement(shape: tuple[int, ...], count: int, dtype: torch.dtype) -> None:
    shared = gaussian(1, max(1, math.prod(shape)), 99).reshape(shape)
    deltas = [
        (shared + 1.5 * gaussian(1, max(1, math.prod(shape)), n).reshape(shape)).to(dtype)
        for n in range(count)
    ]
    scales = [(-1) ** (n // 3) * (0.3 + 0.1 * n) for n in range(count)]
    wanted = reference.agreement([delta.double().numpy() for delta in deltas], scales)
    assert model_stock(list(zip(deltas, scales, strict=True))) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    ("deltas", "wanted"),
    [
        ([torch.ones(3, 4)] * 3, 1.0),
        ([torch.ones(3), -torch.ones(3)], 0.0),
        ([torch.ones(3), torch.zeros(3)], 0.0),
        ([torch.zeros(3), torch.zeros(3)], 0.0),
        ([torch.zeros(3)], 1.0),
        ([torch.zeros(0, 3), torch.zeros(0, 3)], 0.0),
    ],
    ids=["equal", "opposed", "one zero", "zeros", "one", "empty"],
)
def test_agreement_at_its_ends(deltas: list[torch.Tensor], wanted: float) -> None:
    assert model_stock([(delta, 0.2) for delta in deltas]) == pytest.approx(wanted)


@pytest.mark.parametrize("method", PLAIN)
def test_any_combiner_takes_the_factor(method: str) -> None:
    """All combiners are homogeneous, so that a factor before combining is one behind it too."""
    base = torch.zeros(24, 40)
    deltas = [gaussian(24, 40, n).float() + gaussian(24, 40, 9).float() for n in range(3)]
    pairs = [(delta, 0.3) for delta in deltas]
    terms = [Term(delta, 0.3) for delta in deltas]
    found = merge_tensor(base, terms, METHODS[method], torch.float32, model_stock).update
    plain = COMBINERS[METHODS[method].combiner].combine(pairs)
    wanted = reference.agreement([d.double().numpy() for d in deltas], [0.3] * 3)
    assert 0.3 < wanted < 0.9
    np.testing.assert_allclose(found.numpy(), wanted * plain.numpy(), rtol=2e-4, atol=1e-5)


def test_the_combiner_is_the_mean_with_the_factor() -> None:
    deltas = [gaussian(8, 5, n).float() + 1 for n in range(4)]
    terms = [Term(delta, 1.0) for delta in deltas]
    found = merge_tensor(torch.zeros(8, 5), terms, METHODS["wa"], torch.float32, model_stock)
    wanted = COMBINERS["model_stock"].combine([(delta, 1.0) for delta in deltas])
    torch.testing.assert_close(found.update, wanted)
