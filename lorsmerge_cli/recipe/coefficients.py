"""Coefficients by tensor and delta: rules as they are written, and the numbers they stand for.

Rules of patterns form one list, of which the first that matches a tensor counts; each other rule
multiplies what they give. The lambda of a delta, times all of that, is its coefficient in a tensor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from lorsmerge_cli.checkpoint.modules import ALIASES, HALVES, MODULES, depths, half_of, module_of
from lorsmerge_cli.core.coefficients import RULES, Rule
from lorsmerge_cli.errors import LorsmergeError, UsageFault, did_you_mean

if TYPE_CHECKING:
    from lorsmerge_cli.core.coefficients import Agreement

DIGITS = 10  # of a factor that norms decide, so that it does not depend on their last rounding
FORM = "Write decoder=0.5, '*.fc1.*=0.5' or lines:beta=0.4, say."
WORDS = (*HALVES, *MODULES, *ALIASES)
REST = "*"  # the pattern of all tensors
PARTS = ("low_rank", "sparse")  # of a pruned delta
NAMED = re.compile(r"(?P<name>[A-Za-z_]\w*)(:(?P<parameters>.*))?")


@dataclass(frozen=True)
class Pattern:
    """A factor of some tensors.

    Attributes:
        text: as it was written.
        tensors: a half, a module, a half and a module joined by a dot, or a shell pattern.
        factor: of lambda in them.
    """

    text: str
    tensors: str
    factor: float

    def matches(self, name: str) -> bool:
        """Tell whether a tensor is one of them. A leading `model.` may be left out of a pattern."""
        half, dot, module = self.tensors.rpartition(".")
        module = ALIASES.get(module, module)
        if not dot and module in HALVES:
            return half_of(name) == module
        if module in MODULES and half in ("", *HALVES):
            return module_of(name) == module and half in ("", half_of(name))
        return any(fnmatchcase(name, start + self.tensors) for start in ("", "model."))


@dataclass(frozen=True)
class NamedRule:
    """A rule of `RULES` with its parameters.

    Attributes:
        text: as it was written.
        rule: the entry.
        parameters: by name, defaults included.
    """

    text: str
    rule: Rule
    parameters: Mapping[str, float]


def parse_rule(text: str) -> Pattern | NamedRule:
    """Read `decoder=0.5`, `decoder.cross_attn=0.5`, `*.fc1.*=0.5`, `metagpt` or `lines:beta=0.4`.

    Raises:
        UsageFault: it is none of these, or a number is not finite.

    Example:
        >>> parse_rule("decoder=0.5").factor, dict(parse_rule("lines:beta=0.4").parameters)
        (0.5, {'alpha': 1.0, 'beta': 0.4})
    """
    tensors, sign, value = text.rpartition("=")
    named = NAMED.fullmatch(text)
    if named is not None and (named["parameters"] is not None or not sign):
        return _named_rule(text, named["name"], named["parameters"] or "")
    if not sign or not tensors.strip():
        raise UsageFault(f"--coef {text!r} is not a rule.", FORM)
    if "=" in tensors:
        remedy = "Write --coef decoder=0.5 --coef mlp=2, say, or a list in a recipe."
        raise UsageFault(f"--coef {text!r} is more than one rule.", remedy)
    if tensors in RULES:
        raise UsageFault(
            f"--coef {text!r}: {tensors} is a rule, not tensors.",
            "Its parameters follow a colon: lines:beta=0.4. Other rules have none.",
        )
    return Pattern(text, tensors.strip(), _number(text, value))


def _named_rule(text: str, name: str, given: str) -> NamedRule:
    if name not in RULES:
        if name in WORDS:
            raise UsageFault(f"--coef {text!r} has no number.", f"Write {name}=0.5, say.")
        meant = did_you_mean(name, list(RULES))
        raise UsageFault(f"--coef {text!r}: there is no rule {name!r}.{meant}")
    rule = RULES[name]
    parameters: dict[str, float] = {}
    for item in filter(None, given.split(",")):
        key, _, value = item.partition("=")
        if key not in rule.parameters:
            meant = did_you_mean(key, list(rule.parameters)) if rule.parameters else " It has none."
            raise UsageFault(f"--coef {text!r}: {name} has no parameter {key!r}.{meant}")
        if key in parameters:
            raise UsageFault(f"--coef {text!r}: {key!r} is given twice.")
        parameters[key] = _number(text, value)
    found = {key: value for key, value in rule.parameters.items() if value is not None} | parameters
    lacking = [key for key in rule.parameters if key not in found]
    if lacking:
        raise UsageFault(
            f"--coef {text!r} needs {lacking[0]}.", f"Write {name}:{lacking[0]}=0.4, say."
        )
    return NamedRule(text, rule, found)


def _number(text: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageFault(f"--coef {text!r}: {value!r} is not a finite number.", FORM)
    return number


def check_rules(texts: Sequence[str]) -> list[LorsmergeError]:
    """Return the faults of rules as they are written: those of one, and two that contradict.

    Example:
        >>> [str(fault) for fault in check_rules(["decoder=1", "decoder=2"])]
        ["--coef 'decoder=2': the factor of decoder is given twice. Omit one of the two."]
    """
    faults: list[LorsmergeError] = []
    seen: dict[str, str] = {}
    for text in texts:
        try:
            found = parse_rule(str(text))
        except UsageFault as fault:
            faults.append(fault)
            continue
        if isinstance(found, Pattern):
            key, what = f"={found.tensors}", f"the factor of {found.tensors} is given twice"
        else:
            key = found.rule.input
            what = f"{seen.get(key)} decides by {key} already"
        if key in seen:
            faults.append(UsageFault(f"--coef {text!r}: {what}.", "Omit one of the two."))
        seen.setdefault(key, text)
    return faults


@dataclass(frozen=True)
class OwnRules:
    """Rules of one delta alone, all of them patterns.

    Attributes:
        coef: factors of its lambda.
        low_rank: factors of lambda of its low-rank part, in place of those of `coef`, in tensors
            that are pruned.
        sparse: likewise of its sparse part.
    """

    coef: tuple[str, ...] = ()
    low_rank: tuple[str, ...] = ()
    sparse: tuple[str, ...] = ()

    @property
    def by_kind(self) -> dict[str, tuple[str, ...]]:
        """The rules by the key that a recipe has them under."""
        return {"coef": self.coef, "low_rank": self.low_rank, "sparse": self.sparse}


@dataclass(frozen=True)
class TensorFactors:
    """What the rules of a merge make of each tensor.

    Attributes:
        factors: of lambda, by tensor, the same for all deltas; empty without rules, where all are 1.
        agreement: maps a tensor's scaled deltas to a further factor; None without such a rule.
        own: of each delta alone: kind of rule -> tensor -> its further factor; empty where no delta
            has rules.
    """

    factors: Mapping[str, float]
    agreement: Agreement | None = None
    own: tuple[Mapping[str, Mapping[str, float]], ...] = ()

    def of(self, name: str) -> float:
        """Return the factor of a tensor that all deltas have, `agreement` not counted."""
        return self.factors.get(name, 1.0)

    def of_delta(self, name: str, number: int) -> float:
        """Return the factor of a tensor in one delta, from 0, `agreement` not counted."""
        own = self.own[number]["coef"].get(name, 1.0) if self.own else 1.0
        return self.of(name) * own

    def of_parts(self, name: str, number: int) -> tuple[float, float] | None:
        """Return the factors of a delta's low-rank and sparse part; None if it is `of_delta` for both."""
        found = [self.own[number][part].get(name) if self.own else None for part in PARTS]
        if found == [None, None]:
            return None
        low_rank, sparse = (
            self.of_delta(name, number) if own is None else self.of(name) * own for own in found
        )
        return low_rank, sparse


def own_factors(rules: OwnRules, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the factors that a delta's own rules give tensors, by kind; those of no rule are left out.

    Example:
        >>> names = ["model.encoder.conv1.weight", "model.decoder.layer_norm.weight"]
        >>> own_factors(OwnRules(sparse=("encoder=0.5",)), names)["sparse"]
        {'model.encoder.conv1.weight': 0.5}
    """
    found: dict[str, dict[str, float]] = {}
    for kind, texts in rules.by_kind.items():
        patterns = [rule for rule in map(parse_rule, texts) if isinstance(rule, Pattern)]
        matches = {name: next((p for p in patterns if p.matches(name)), None) for name in names}
        found[kind] = {name: p.factor for name, p in matches.items() if p is not None}
    return found


def check_own_rules(rules: OwnRules, where: str) -> list[LorsmergeError]:
    """Return the faults of a delta's own rules as they are written.

    Args:
        rules: of the delta.
        where: the delta, for messages.

    Example:
        >>> [str(fault) for fault in check_own_rules(OwnRules(sparse=("metagpt",)), "ca.delta")]
        ["ca.delta, sparse: 'metagpt' is no factor of tensors. Write decoder=0.5, say."]
    """
    faults: list[LorsmergeError] = []
    for kind, texts in rules.by_kind.items():
        found = check_rules(texts)
        faults += [UsageFault(f"{where}, {kind}: {fault.what}", fault.remedy) for fault in found]
        faults += [
            UsageFault(
                f"{where}, {kind}: {text!r} is no factor of tensors.", "Write decoder=0.5, say."
            )
            for text in (() if found else texts)
            if not isinstance(parse_rule(text), Pattern)
        ]
    return faults


def tensor_factors(
    texts: Sequence[str], names: Sequence[str], own: Sequence[OwnRules] = ()
) -> TensorFactors:
    """Return the factors that rules, which `check_rules` found sound, give each tensor.

    Rules by norms are not among them: `Recipe.weighed` turns those into the deltas' own lambdas.

    Args:
        texts: the rules.
        names: of the float tensors of the base.
        own: rules of each delta alone; empty for none.

    Example:
        >>> names = ["model.encoder.conv1.weight", "model.decoder.layer_norm.weight"]
        >>> tensor_factors(["encoder=0.5", "*=2"], names).factors
        {'model.encoder.conv1.weight': 0.5, 'model.decoder.layer_norm.weight': 2.0}
    """
    rules = [parse_rule(text) for text in texts]
    agreement = next((r.rule.by_deltas for r in _named(rules) if r.rule.by_deltas), None)
    by_depth = [(r.rule.by_depth, r.parameters) for r in _named(rules) if r.rule.by_depth]
    patterns = [rule for rule in rules if isinstance(rule, Pattern)]
    of_deltas = tuple(own_factors(rules, names) for rules in own) if any_own(own) else ()
    if not patterns and not by_depth:
        return TensorFactors({}, agreement, of_deltas)
    places = depths(names) if by_depth else {}
    factors = {}
    for name in names:
        factor = next((rule.factor for rule in patterns if rule.matches(name)), 1.0)
        for function, parameters in by_depth:
            factor *= function(*places.get(name, (0, 0)), **parameters)
        factors[name] = factor
    return TensorFactors(factors, agreement, of_deltas)


def any_own(own: Sequence[OwnRules]) -> bool:
    """Tell whether a delta has rules of its own.

    Example:
        >>> any_own([OwnRules(), OwnRules(coef=("mlp=2",))]), any_own([OwnRules()])
        (True, False)
    """
    return any(any(rules.by_kind.values()) for rules in own)


@dataclass(frozen=True)
class GroupFactors:
    """The factors of one half's tensors of one module.

    Attributes:
        half: `encoder`, `decoder`, or empty.
        module: of `MODULES`, or empty.
        tensors: their number.
        low, high: the least and the largest factor.
    """

    half: str
    module: str
    tensors: int
    low: float
    high: float


def group_factors(found: TensorFactors, names: Sequence[str]) -> list[GroupFactors]:
    """Return the factors by half and module, in the order of `MODULES`.

    Args:
        found: the factors.
        names: of the float tensors of the base.

    Example:
        >>> names = ["model.encoder.conv1.weight", "model.decoder.layer_norm.weight"]
        >>> group_factors(tensor_factors(["encoder=0.5"], names), names)[1]
        GroupFactors(half='encoder', module='conv', tensors=1, low=0.5, high=0.5)
    """
    members: dict[tuple[str, str], list[float]] = {}
    for name in names:
        members.setdefault((half_of(name), module_of(name)), []).append(found.of(name))
    return [
        GroupFactors(half, module, len(factors), min(factors), max(factors))
        for module in (*MODULES, "")
        for half in (*HALVES, "")
        if (factors := members.get((half, module)))
    ]


def _named(rules: Iterable[Pattern | NamedRule]) -> list[NamedRule]:
    return [rule for rule in rules if isinstance(rule, NamedRule)]


def check_matches(
    texts: Sequence[str], names: Sequence[str], base: object, warnings: list[str]
) -> list[LorsmergeError]:
    """Return a fault for each rule that no tensor of the base is subject to.

    Args:
        texts: the rules, sound by themselves.
        names: of the float tensors of the base.
        base: what messages call it.
        warnings: gets one for each pattern whose tensors all belong to earlier ones.
    """
    faults: list[LorsmergeError] = []
    taken: set[str] = set()
    for rule in map(parse_rule, texts):
        if isinstance(rule, NamedRule):
            if rule.rule.by_depth and not depths(names):
                what = f"--coef {rule.text!r}: {base} has no numbered blocks with attention."
                faults.append(UsageFault(what, "Give factors of tensors by patterns."))
            continue
        found = {name for name in names if rule.matches(name)}
        if not found:
            faults.append(_no_match(rule, names, base))
        elif found <= taken:
            warnings.append(
                f"--coef {rule.text!r} has no effect: rules before it match all of its tensors, and "
                "the first that matches counts."
            )
        taken |= found
    return faults


def _no_match(rule: Pattern, names: Sequence[str], base: object) -> UsageFault:
    there = groups_of(("half", "module"), names, rest=False)
    known = [*dict.fromkeys(word for group in there for word in (group.split(".")[0], group))]
    word = rule.tensors.removesuffix(".*")
    close = get_close_matches(word, [*known, *MODULES], n=1, cutoff=0.7)
    meant = f" Did you mean {close[0]}={rule.factor:g}?" if close and close[0] != word else ""
    return UsageFault(
        f"--coef {rule.text!r} matches no float tensor of {base}.{meant}",
        f"There are {', '.join(there) or 'no halves and modules'}; `lorsmerge inspect BASE` lists "
        "the names of tensors for shell patterns.",
    )


def groups_of(by: Sequence[str], names: Sequence[str], *, rest: bool = True) -> list[str]:
    """Return the groups of tensors that a base's names fall into, each a pattern of a rule.

    Args:
        by: of `half` and `module`, what tells them apart.
        names: of the float tensors of the base.
        rest: put norms, embeddings, convolutions and what belongs nowhere into one group, `*`, which
            comes last; else only what belongs somewhere has a group.

    Example:
        >>> names = ["model.encoder.layers.0.fc1.weight", "model.decoder.layers.0.fc1.weight"]
        >>> groups_of(["half"], names), groups_of(["half", "module"], names)
        (['encoder', 'decoder'], ['encoder.mlp', 'decoder.mlp'])
    """
    matrices = ("self_attn", "cross_attn", "mlp")
    found: set[tuple[str, str]] = set()
    others = False
    for name in names:
        half = half_of(name) if "half" in by else ""
        module = module_of(name) if "module" in by else ""
        belongs = (half or "half" not in by) and (module or "module" not in by)
        if not belongs or (rest and "module" in by and module not in matrices):
            others = True
        else:
            found.add((half, module))
    order = [(half, module) for half in (*HALVES, "") for module in (*MODULES, "")]
    groups = [".".join(filter(None, pair)) for pair in order if pair in found]
    return [*groups, REST] if rest and others else groups


def check_groups(by: Sequence[str], names: Sequence[str], base: object) -> list[LorsmergeError]:
    """Return a fault for each way to tell tensors apart that a base has no use for.

    Args:
        by: of `half`, `module` and `depth`.
        names: of the float tensors of the base.
        base: what messages call it.
    """
    there = {
        "half": len({half_of(name) for name in names} - {""}) > 1,
        "module": len(groups_of(["module"], names)) > 1,
        "depth": any(blocks > 1 for _, blocks in depths(names).values()),
        "part": True,  # which the deltas tell
    }
    lacking = {
        "half": "no encoder and decoder", "module": "no modules to tell apart",
        "depth": "no stack of several blocks",
    }  # fmt: skip
    return [
        UsageFault(f"--by {word}: {base} has {lacking[word]}.", "Omit it.")
        for word in by
        if not there[word]
    ]


def norm_factors(texts: Sequence[str], norms: Sequence[float]) -> tuple[list[float], list[str]]:
    """Return the factor that rules by norms give each delta, and the rules without those.

    Args:
        texts: rules, sound by themselves.
        norms: L2 norm of each delta, none of them zero.

    Example:
        >>> norm_factors(["decoder=0.5", "metagpt"], [1.0, 3.0])
        ([0.1, 0.9], ['decoder=0.5'])
    """
    factors = [1.0] * len(norms)
    others = list(texts)
    for found in _named(map(parse_rule, texts)):
        if found.rule.by_norms:
            factors = [
                factor * float(f"{own:.{DIGITS}g}")
                for factor, own in zip(factors, found.rule.by_norms(norms), strict=True)
            ]
            others.remove(found.text)
    return factors, others


def scale_with(texts: Sequence[str]) -> float | None:
    """Return lambda with rules where none is given; None for the method's.

    Example:
        >>> scale_with(["decoder=0.5", "metagpt"]), scale_with(["equalise"])
        (1.0, None)
    """
    scales = (found.rule.scale for found in _named(map(parse_rule, texts)))
    return next((scale for scale in scales if scale is not None), None)


def between_deltas(texts: Sequence[str]) -> list[str]:
    """Return the rules that compare deltas.

    Example:
        >>> between_deltas(["decoder=0.5", "metagpt", "model_stock", "lines:beta=0.4"])
        ['metagpt', 'model_stock']
    """
    return [
        found.text
        for found in _named(map(parse_rule, texts))
        if found.rule.by_norms or found.rule.by_deltas
    ]


def takes_norms(texts: Sequence[str]) -> bool:
    """Tell whether one of the rules is by norms.

    Example:
        >>> takes_norms(["decoder=0.5"]), takes_norms(["equalise"])
        (False, True)
    """
    return any(found.rule.by_norms for found in _named(map(parse_rule, texts)))
