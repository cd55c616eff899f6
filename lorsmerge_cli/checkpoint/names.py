"""What a tensor's name and shape tell: whether it is pruned, its type, and its module."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from lorsmerge_cli.checkpoint.modules import EMBEDDING, PROJECTION
from lorsmerge_cli.checkpoint.safetensors_file import TensorSpec
from lorsmerge_cli.errors import UsageFault
from lorsmerge_cli.quoting import command

# transformers' names of modules that are not inner linear layers. A delta has no config, and `merge`
# has to prune the same tensors as `prune`, so names and shapes decide in both. A test compares them
# with the module types of every architecture that transformers can build.
HEAD = re.compile(
    r"(^|_)(heads?|classifier|score|summary)$|^logits_"
    r"|^(decoder|proj_out|lm_proj|lm_loss|embed_out|output|output_projection|vocab_projector"
    r"|pred_layer|predictions|final_layer|qa_outputs|objective)$"
)
# the last layer of a head that is a module itself: `classifier.out_proj`
HEAD_MODULE = re.compile(r"(^|_)(heads?|classifier|score)$|^(pred_layer|qa_outputs)$")
HEAD_LAYER = re.compile(r"^(dense|proj|out_proj|linear(_out|_hidden)?)$")
ROUTER = re.compile(r"(^|_)router$")
POSITIONS = re.compile(r"pos|type|wpe")
# matrices of a mixture's experts, stacked in a 3-D tensor
EXPERTS = re.compile(r"expert|moe|^(in|out)put_linear$")
CONVOLUTION = re.compile(r"^conv\d*$")
# `layers.0.fc1.`, but not `lm_heads.0.`
NUMBERED_LAYER = re.compile(r"(^|\.)\d+\.[^.]*[^.\d][^.]*\.")
SMALLEST_VOCABULARY = 50  # a smaller dimension may be anything else


def is_linear_weight(name: str, spec: TensorSpec) -> bool:
    """Tell whether name and shape are those of a linear layer inside the model.

    In Whisper these are attention and MLP. Embeddings, output layers, norms, biases, convolutions
    and the routers of experts are not.
    """
    return _module_type(name, spec) == "linear"


def linear_weights(specs: Mapping[str, TensorSpec]) -> frozenset[str]:
    """Return the names of all weights of linear layers, which are pruned by default.

    In addition to `is_linear_weight`, the vocabulary decides: a weight outside numbered layers with
    as many rows as the token embedding is an embedding or an output layer too, whatever its name.

    Args:
        specs: all tensors of a model, or of its delta.
    """
    types = {name: _module_type(name, spec) for name, spec in specs.items()}
    vocabularies = {
        specs[name].shape[0]
        for name, found in types.items()
        if found in ("embedding", "head")
        and specs[name].shape[0] > max(SMALLEST_VOCABULARY, specs[name].shape[1])
        and not POSITIONS.search(_words(name)[-1])
    }
    return frozenset(
        name
        for name, found in types.items()
        if found == "linear"
        and (
            NUMBERED_LAYER.search(name)
            or specs[name].shape[0] <= specs[name].shape[1]
            or specs[name].shape[0] not in vocabularies
        )
    )


def _module_type(name: str, spec: TensorSpec) -> str:
    """Return `linear`, `embedding`, `head` or `router`; empty if it is not a 2-D weight."""
    words = _words(name)
    is_matrix = spec.is_float and len(spec.shape) == 2
    if not (is_matrix and words and name.endswith(".weight")) or CONVOLUTION.search(words[-1]):
        return ""
    parent, last = ["", *words][-2:]
    if EMBEDDING.search(last) and not PROJECTION.search(last):
        return "embedding"
    is_gate = last == "gate" and spec.shape[0] < spec.shape[1]  # maps the width to the experts
    if is_gate or ROUTER.search(last) or ROUTER.search(parent):
        return "router"
    is_head = HEAD.search(last) or (HEAD_MODULE.search(parent) and HEAD_LAYER.search(last))
    return "head" if is_head and not NUMBERED_LAYER.search(name) else "linear"


def _words(name: str) -> list[str]:
    """Return the modules that contain a tensor, without layer numbers."""
    return [part for part in name.split(".")[:-1] if not part.isdigit()]


def is_expert_stack(name: str, spec: TensorSpec) -> bool:
    """Tell whether a tensor is (E, d, k): a matrix for each of E experts."""
    has_name = any(EXPERTS.search(part) for part in name.split("."))
    return spec.is_float and len(spec.shape) == 3 and has_name


def is_variance(name: str) -> bool:
    """Tell whether a tensor is the running variance of a BatchNorm, which is never negative."""
    return name.endswith("running_var")


def select_pruned(
    specs: Mapping[str, TensorSpec], include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> frozenset[str]:
    """Return the names of the tensors to prune: linear weights, plus `include`, minus `exclude`.

    Args:
        specs: all float tensors.
        include: shell patterns of further 2-D tensors to prune, and of 3-D tensors of experts.
        exclude: shell patterns of tensors to merge unpruned.

    Raises:
        UsageFault: a pattern matches no such tensor.
    """
    matrices = [name for name, spec in specs.items() if _can_be_pruned(name, spec)]
    chosen = set(linear_weights(specs))
    for pattern in (*include, *exclude):
        if not _matching(matrices, pattern):
            raise UsageFault(
                f"The pattern {pattern!r} matches no 2-D tensor of the base, and no 3-D tensor of experts.",
                "`lorsmerge inspect BASE` lists the names; quote patterns to keep them from the shell.",
            )
    for pattern in include:
        chosen |= _matching(matrices, pattern)
    for pattern in exclude:
        chosen -= _matching(matrices, pattern)
    return frozenset(chosen)


def _can_be_pruned(name: str, spec: TensorSpec) -> bool:
    """Tell whether a tensor is a matrix or a stack of them, unlike the (E, d) biases of E experts."""
    if is_expert_stack(name, spec):
        return True
    parts = name.split(".")
    is_bias = parts[-1].endswith("bias") and any(EXPERTS.search(part) for part in parts)
    return spec.is_float and len(spec.shape) == 2 and not is_bias


def idle_patterns(
    specs: Mapping[str, TensorSpec], include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> list[str]:
    """Return a warning for each pattern that does not change what `select_pruned` returns."""
    chosen = select_pruned(specs, include, exclude)
    given = {"include": tuple(include), "exclude": tuple(exclude)}
    idle = []
    for option, patterns in given.items():
        for pattern in dict.fromkeys(patterns):
            others = tuple(other for other in patterns if other != pattern)
            if select_pruned(specs, **{**given, option: others}) == chosen:
                idle.append(
                    f"--{option} {pattern!r} has no effect: without it the same tensors are pruned."
                )
    return idle


def nothing_to_prune(where: object, exclude: Sequence[str]) -> UsageFault:
    """Return the error for a model without a tensor to prune."""
    if exclude:
        return UsageFault(
            f"{where}: --exclude leaves no tensor to prune.",
            "Narrow its patterns, or omit the ratios to merge unpruned.",
        )
    return UsageFault(
        f"{where} has no tensor to prune: no 2-D weight of a linear layer.",
        "Choose tensors with --include; `lorsmerge inspect` lists the names.",
    )


def _matching(names: Iterable[str], pattern: str) -> set[str]:
    return {name for name in names if fnmatchcase(name, pattern)}


def pruned_share(specs: Mapping[str, TensorSpec], pruned: Iterable[str]) -> float:
    """Return the share of the parameters that are in pruned tensors."""
    count = sum(specs[name].numel for name in pruned)
    return count / max(1, sum(spec.numel for spec in specs.values()))


def share_warning(specs: Mapping[str, TensorSpec], pruned: frozenset[str]) -> list[str]:
    """Return a warning of the largest unpruned tensors if less than half of the parameters is pruned.

    Args:
        specs: all float tensors.
        pruned: names of the pruned ones.
    """
    share = pruned_share(specs, pruned)
    if share >= 0.5:
        return []
    rest: Counter[str] = Counter()
    for name, spec in specs.items():
        if name not in pruned:
            rest[without_layer(name)] += spec.numel
    total = sum(spec.numel for spec in specs.values())
    first, *others = rest.most_common(3)
    largest = [first[0], *(name for name, count in others if count >= 0.05 * total)]
    to_include = {
        without_layer(name)
        for name in specs.keys() - linear_weights(specs)
        if _can_be_pruned(name, specs[name])
    }
    options = " ".join(command("--include", name) for name in largest if name in to_include)
    listed = ", ".join(f"{name} ({rest[name] / total:.0%})" for name in largest)
    return [
        f"{share:.0%} of the parameters are pruned. Most others are in {listed}, merged whole"
        + (f" unless you add {options}." if options else ".")
    ]


def without_layer(name: str) -> str:
    """Replace every layer number in a name by `*`."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def tensor_type(name: str) -> str:
    """Return the part of a name after the layer: `self_attn.q_proj.weight`, `fc1.weight`."""
    parts = name.split(".")
    last_number = max((i for i, part in enumerate(parts) if part.isdigit()), default=-1)
    return ".".join(parts[last_number + 1 :] if last_number + 1 < len(parts) else parts)


def module(name: str) -> str:
    """Return the module a tensor belongs to: `encoder`, `decoder`, else the outermost one."""
    parts = name.split(".")
    for part in parts:
        if part in ("encoder", "decoder"):
            return part
    return parts[0] if parts[0] != "model" or len(parts) == 1 else parts[1]
