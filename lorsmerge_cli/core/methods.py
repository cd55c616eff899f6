"""Merging methods: a pruner and a combiner each, with parameters, found by the text that names them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from lorsmerge_cli.core.combining import COMBINERS, PAPER_SCALE, Combiner
from lorsmerge_cli.core.parameters import (
    Parameter,
    Value,
    Values,
    changed,
    parse_settings,
    shown,
)
from lorsmerge_cli.core.pruning import AROUND, PRUNERS, Pruner, prune
from lorsmerge_cli.errors import Faults, LorsmergeError, UsageFault, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from lorsmerge_cli.core.low_rank_sparse import Delta
    from lorsmerge_cli.core.pruning.budget import Budget

PLUS = re.compile(r"\+(?!\d)")  # between pruner and combiner; 1e+2 is a number
LONGEST = 200  # characters of a method's text
RATIOS = {
    "svp": Parameter("svp", 0.03, "share of the singular triplets kept"),
    "mp": Parameter("mp", 0.4, "share of the elements kept"),
}


@dataclass(frozen=True)
class Method:
    """A way to merge: a pruner of each delta, and a combiner of the pruned deltas.

    Attributes:
        pruner: a name in `PRUNERS`, None to merge deltas unpruned.
        combiner: a name in `COMBINERS`.
        pruning: the pruner's parameters that are not the default.
        combining: the combiner's.

    Example:
        >>> METHODS["ties"].spec, Method("lors", "iso_c").spec
        ('ties', 'lors+iso_c')
    """

    pruner: str | None
    combiner: str
    pruning: Values = ()
    combining: Values = ()

    @property
    def spec(self) -> str:
        """The text that `find_method` makes this method of: `ties:k=0.3`, `lors+iso_c`."""
        name = _name(self.pruner, self.combiner)
        if name is not None:
            return _text(name, self.pruning + self.combining)
        pruner = _text(self.pruner or "", self.pruning)
        return f"{pruner}+{_text(self.combiner, self.combining)}"

    @property
    def full_spec(self) -> str:
        """The text with every number written out, as recipes have it: `ties:k=0.2`.

        A later change of a default then leaves them what they are. Words are left out where they are
        the default: they name another method, not another amount.

        Example:
            >>> find_method("ties").full_spec, find_method("lors+ties:k=0.3").full_spec
            ('ties:k=0.2', 'lors+ties:k=0.3')
        """
        pruner = PRUNERS[self.pruner].parameters if self.pruner else ()
        return Method(
            self.pruner, self.combiner, _numbers(pruner, self.pruning),
            _numbers(self.combined.parameters, self.combining),
        ).spec  # fmt: skip

    @property
    def pruner_spec(self) -> str:
        """What decides how a delta is pruned beside its ratios; empty without a pruner."""
        return _text(self.pruner, self.pruning) if self.pruner else ""

    @property
    def title(self) -> str:
        """The method's name in a sentence."""
        title = self.combined.title
        if self.pruner is not None:
            pruner = PRUNERS[self.pruner]
            own = pruner.combiner == self.combiner
            title = pruner.title if own else f"{title} of deltas pruned by {self.pruner}"
        values = self.pruning + self.combining
        return f"{title}, {_settings(values)}" if values else title

    @property
    def formula(self) -> str:
        """The update, with t_i for lambda_i times delta i, of T."""
        pruned = PRUNERS[self.pruner].formula if self.pruner else "t_i"
        return self.combined.formula.replace("t_i", pruned)

    @property
    def paper(self) -> str:
        """Authors, year and arXiv number: the pruner's, or the combiner's without one."""
        return PRUNERS[self.pruner].paper if self.pruner else self.combined.paper

    @property
    def combined(self) -> Combiner:
        """What is known of the combiner."""
        return COMBINERS[self.combiner]

    @property
    def ratios(self) -> tuple[str, ...]:
        """Names of the ratios that the pruner needs."""
        return PRUNERS[self.pruner].ratios if self.pruner else ()

    @property
    def scale(self) -> float:
        """Default lambda."""
        return self.combined.scale

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Of pruner and combiner."""
        own = PRUNERS[self.pruner].parameters if self.pruner else ()
        return own + self.combined.parameters

    @property
    def adds_up(self) -> bool:
        """Whether the update is a sum or a mean of whole deltas."""
        return self.pruner is None and self.combined.linear and not self.statistics

    @property
    def centred(self) -> bool:
        """Whether deltas are pruned around their mean."""
        return any(key == AROUND.name for key, _ in self.pruning)

    @property
    def overall(self) -> float | None:
        """The share that is kept of each delta as a whole; None where each tensor has its own."""
        if self.pruner is None or not PRUNERS[self.pruner].overall:
            return None
        defaults = {parameter.name: parameter.default for parameter in self.parameters}
        return float((defaults | dict(self.pruning))[PRUNERS[self.pruner].overall])

    @property
    def needs_all(self) -> bool:
        """Whether all deltas of a whole tensor are held at once."""
        return self.combined.needs_all or self.centred

    @property
    def takes_factors(self) -> bool:
        """Whether deltas of low rank may stay factors, and are the cheaper for it."""
        pruner_turns = self.pruner is not None and PRUNERS[self.pruner].turns
        return (self.combined.turns or pruner_turns) and not self.centred

    @property
    def copies(self) -> int:
        """Tensors in float32 held at most, beside the deltas and what pruning holds anyway."""
        pruning = PRUNERS[self.pruner].copies if self.pruner else 0
        return max(self.combined.copies, pruning) + 2 * self.centred

    def allot(
        self,
        names: Collection[str],
        values: Callable[[str], Iterable[Tensor]],
        deltas: int,
        threads: int,
        on_read: Callable[[str], None] = lambda name: None,
    ) -> dict[tuple[int, str], Budget]:
        """Return what is kept of tensors where that takes a pass over all of each delta.

        Args:
            names: of the tensors that are pruned.
            values: reads a tensor of each delta (float32 or float64, finite); called in threads.
            deltas: their number.
            threads: tensors in flight; the result does not depend on it.
            on_read: as in `localize.allot`.

        Returns:
            By a delta's index and a tensor's name; empty where ratios, or the pruner, tell.

        Example:
            >>> METHODS["lors"].allot(["fc1.weight"], lambda name: [], deltas=1, threads=1)
            {}
        """
        if self.overall is None:
            return {}
        from lorsmerge_cli.core.pruning.localize import allot

        read = _rests(values) if self.centred else values
        return allot(names, read, deltas, self.overall, threads, on_read)

    def prune(self, delta: Delta, budget: Budget, mean: Tensor | None = None) -> Delta:
        """Return a pruned delta as `pruning.prune` does: f(W), or M + f(W - M) around a mean M.

        Args:
            delta: W (d, k), any float dtype, finite, or its low-rank and sparse parts; or a stack
                (E, d, k).
            budget: what the ratios, or `allot`, keep of each matrix.
            mean: M, of all deltas of the tensor, where the method is `centred`.

        Example:
            >>> import torch
            >>> from lorsmerge_cli.core.pruning.budget import Budget
            >>> METHODS["mp"].prune(torch.tensor([[1.0, -5.0]]), Budget(rank=0, kept=1)).to_dense()
            tensor([[ 0., -5.]])
        """
        from lorsmerge_cli.core.low_rank_sparse import dense

        pruner = self.pruner
        if pruner is None:
            return delta
        values = {key: value for key, value in self.pruning if key != AROUND.name}
        if mean is None or budget.whole:
            return prune(delta, pruner, budget, **values)
        return around(dense(delta), mean, lambda rest: prune(rest, pruner, budget, **values))

    @property
    def statistics(self) -> str:
        """Kind of the statistics over audio that the combiner needs; empty for none."""
        return self.combined.statistics

    def combine(
        self,
        deltas: Iterable[tuple[Delta, float]],
        statistics: Sequence[Callable[[], Tensor]] = (),
    ) -> Tensor:
        """Return the update of one tensor, as `Combiner.combine` does.

        Args:
            deltas: pairs of a pruned delta and its coefficient, as there.
            statistics: as there.

        Raises:
            ValueError: there are no deltas.

        Example:
            >>> import torch
            >>> pairs = [(torch.tensor([3.0, -4.0]), 1.0), (torch.tensor([1.0, 6.0]), 1.0)]
            >>> find_method("ties:k=1").combine(pairs), METHODS["wa"].combine(pairs)
            (tensor([2., 6.]), tensor([2., 1.]))
        """
        return self.combined.combine(deltas, statistics, **dict(self.combining))

    def prunes(self, svp: float | None, mp: float | None) -> bool:
        """Return whether a delta of these ratios is pruned.

        Example:
            >>> METHODS["lors"].prunes(0.1, None), METHODS["lors"].prunes(None, None)
            (True, False)
        """
        return self.pruner is not None and (not self.ratios or (svp, mp) != (None, None))


def around(delta: Tensor, mean: Tensor, pruned: Callable[[Tensor], Delta]) -> Tensor:
    """Return M + f(W - M): the mean of the deltas, and what f leaves of the rest of one.

    Args:
        delta: W, of any shape and float dtype.
        mean: M, of W's shape, float32 or float64.
        pruned: f.

    Example:
        >>> import torch
        >>> w, m = torch.tensor([1.0, 5.0]), torch.tensor([2.0, 2.0])
        >>> around(w, m, lambda rest: rest.clamp(min=0))
        tensor([2., 5.])
    """
    from lorsmerge_cli.core.low_rank_sparse import dense

    return mean + dense(pruned(delta - mean))


def _rests(values: Callable[[str], Iterable[Tensor]]) -> Callable[[str], Iterator[Tensor]]:
    """Return what reads each delta less the mean of all, of a tensor."""
    from lorsmerge_cli.core.combining.mean import mean

    def read(name: str) -> Iterator[Tensor]:
        held = list(values(name))
        center = mean((delta, 1.0) for delta in held)
        return (delta - center for delta in held)

    return read


def _numbers(parameters: Sequence[Parameter], values: Values) -> Values:
    given = dict(values)
    return tuple(
        (parameter.name, given.get(parameter.name, parameter.default))
        for parameter in parameters
        if parameter.name in given or not parameter.choices
    )


def _text(name: str, values: Values) -> str:
    return f"{name}:{_settings(values)}" if values else name


def _settings(values: Values) -> str:
    return ",".join(f"{key}={shown(value)}" for key, value in values)


# A method for each pruner, with the combiner it names, and for each combiner without a pruner.
METHODS = {
    "ta": Method(None, "sum"),
    **{name: Method(name, pruner.combiner) for name, pruner in PRUNERS.items()},
    **{
        combiner.alone or name: Method(None, name)
        for name, combiner in COMBINERS.items()
        if name != "sum"
    },
}


def _name(pruner: str | None, combiner: str) -> str | None:
    pairs = ((name, (method.pruner, method.combiner)) for name, method in METHODS.items())
    return next((name for name, pair in pairs if pair == (pruner, combiner)), None)


@cache
def find_method(spec: str) -> Method:
    """Return the method that a text names.

    Args:
        spec: a name in `METHODS`, or a pruner and a combiner joined by `+`; each may have
            parameters: `ties:k=0.3`, `lors+tsv_m`, `svp+ties:k=0.3`.

    Raises:
        UsageFault: there is no such method, or a parameter is not one of its, or is out of range.

    Example:
        >>> find_method("ties:k=0.30").spec, find_method("lors+sum").spec
        ('ties:k=0.3', 'lors')
    """
    if len(spec) > LONGEST:  # of a file that a stranger wrote
        what = f"Method {spec[:40]!r}... of {len(spec):,} characters is none."
        raise UsageFault(what, "`lorsmerge methods` lists those that there are.")
    first, *others = PLUS.split(spec)
    if len(others) > 1:
        raise UsageFault(
            f"Method {spec!r} has more than two parts.", "Write PRUNER+COMBINER: lors+iso_c, say."
        )
    name, values = (
        _part("method", first, METHODS) if not others else _part("pruner", first, PRUNERS)
    )
    if others:
        combiner, combining = _part("combiner", others[0], COMBINERS)
        return _method(name, combiner, values, combining)
    return _method(METHODS[name].pruner, METHODS[name].combiner, values, values)


def _method(
    pruner: str | None, combiner: str, pruning: Mapping[str, Value], combining: Mapping[str, Value]
) -> Method:
    takes = PRUNERS[pruner].parameters if pruner else ()
    return Method(
        pruner, combiner, changed(pruning, takes),
        changed(combining, COMBINERS[combiner].parameters),
    )  # fmt: skip


def _part(
    kind: str, text: str, table: Mapping[str, Method | Pruner | Combiner]
) -> tuple[str, dict[str, Value]]:
    """Read a name in a table and its parameters."""
    name, colon, settings = (part.strip() for part in text.partition(":"))
    if name not in table:
        raise UsageFault(f"Unknown {kind} {name!r}.{_meant(name, table)}")
    if not colon:
        return name, {}
    owner, parameters = f"{kind.capitalize()} {name}", table[name].parameters
    given = [item.partition("=")[0].strip() for item in settings.split(",")]
    known = [parameter.name for parameter in parameters]
    for ratio in getattr(table[name], "ratios", ()):
        if ratio in given and ratio not in known:
            what = f"{owner}: {ratio} is a ratio, and no parameter of a method."
            remedy = f"Give it as --{ratio}, within --prune, or as `{ratio} = ...` in a recipe."
            raise UsageFault(what, remedy)
    return name, parse_settings(settings, parameters, owner)


def _meant(name: str, table: Mapping[str, object]) -> str:
    """Return the end of a message on a name that a table lacks."""
    if name in COMBINERS and table is METHODS:
        return f" It is a combiner, whose method is {COMBINERS[name].alone!r}."
    if name in COMBINERS and table is PRUNERS:
        return f" It is a combiner: the pruner comes first, as in 'lors+{name}'."
    return did_you_mean(name, list(table))


def method_faults(spec: str | None) -> list[LorsmergeError]:
    """Return the faults of a method's text; None stands for no text.

    Example:
        >>> method_faults("ties"), method_faults(None), len(method_faults("ties:k=2,j=1"))
        ([], [], 2)
    """
    try:
        if spec is not None:
            find_method(spec)
    except Faults as found:
        return list(found.errors)
    except UsageFault as fault:
        return [fault]
    return []


def compose(pruner: str | None, combiner: str | None) -> tuple[str, dict[str, float]]:
    """Join a pruner and a combiner to a method.

    Args:
        pruner: `NAME[:SETTINGS]`, ratios among the settings; None for no pruning.
        combiner: `NAME[:SETTINGS]`; None for that of the pruner's own method.

    Returns:
        The method's text, and the ratios among the settings.

    Raises:
        UsageFault: as `find_method`.

    Example:
        >>> compose("lors:svp=0.05,mp=0.2", "iso_c")
        ('lors+iso_c', {'svp': 0.05, 'mp': 0.2})
        >>> compose("lors", None), compose(None, "mean")
        (('lors', {}), ('wa', {}))
    """
    name, values = None, dict[str, Value]()
    if pruner is not None:
        with_ratios = {
            key: replace(
                entry, parameters=(*(RATIOS[ratio] for ratio in entry.ratios), *entry.parameters)
            )
            for key, entry in PRUNERS.items()
        }
        name, values = _part("pruner", pruner, with_ratios)
    own = PRUNERS[name].combiner if name else "sum"
    combined, combining = _part("combiner", own if combiner is None else combiner, COMBINERS)
    ratios = {key: float(value) for key, value in values.items() if key in RATIOS}
    return _method(name, combined, values, combining).spec, ratios


def default_scale(spec: str | None) -> float:
    """Return the lambda of a method; the paper's where none, or none that there is, is named.

    Example:
        >>> default_scale(None), default_scale("ties:k=0.3")
        (0.15, 1.0)
    """
    return PAPER_SCALE if spec is None or method_faults(spec) else find_method(spec).scale


def method_of(ratios: Collection[str]) -> str:
    """Return the name of the method that ratios imply: the first that takes exactly these.

    Example:
        >>> method_of(["mp", "svp"]), method_of([])
        ('lors', 'ta')
    """
    return next(name for name, method in METHODS.items() if set(method.ratios) == set(ratios))


def method_of_pruned(method: str, ratios: Collection[str]) -> str:
    """Return the method that a merge of already pruned deltas is equal to.

    Args:
        method: of the merge itself, as `find_method` reads it.
        ratios: names of the ratios that its deltas were pruned by.

    Example:
        >>> method_of_pruned("ta", ["svp"]), method_of_pruned("wa", ["svp"])
        ('svp', 'wa')
    """
    own = find_method(method)
    if own.pruner is None:
        for name, other in METHODS.items():
            if other.combiner == own.combiner and ratios and set(other.ratios) == set(ratios):
                return name
    return method
