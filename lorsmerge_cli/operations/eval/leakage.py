"""Find content of test sets in the data that models were trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lorsmerge_cli.core.sketch import Sketch
from lorsmerge_cli.data.digests import digests_of
from lorsmerge_cli.data.leakage import Shared, repeated, shared_with, shared_with_training
from lorsmerge_cli.recipe.record import model_digests
from lorsmerge_cli.results.document import TestSet
from lorsmerge_cli.speech.source import ModelSource

Group = tuple[str, str, str, str]  # model, data set, language, task


def leaks_of(
    models: Sequence[ModelSource], test_sets: Sequence[TestSet]
) -> tuple[list[str], dict[Group, tuple[Shared, ...]]]:
    """Find content of test sets in the data that models were trained on, and in other test sets.

    Returns:
        Warnings, and (model, data set, language, task) -> what is shared, for every model that has
        digests of its training data.
    """
    warnings: list[str] = []
    found: dict[Group, tuple[Shared, ...]] = {}
    before: list[tuple[str, Mapping[str, Sketch]]] = []
    trained = {
        model.name: known
        for model in models
        if (known := model_digests(model.checkpoint, model.name, model.applied))
    }
    for test_set in test_sets:
        digests, name = digests_of(test_set.utterances), test_set.name
        warnings += repeated(digests, name=name)
        for other, theirs in before:
            found_too = [s for s in shared_with(digests, theirs) if s.kind == "audio"]
            warnings += [
                f"{shared.in_words(f'{other} too', name=name)}: an average counts them twice."
                for shared in found_too
            ]
        before.append((name, digests.sketches))
        groups = [(row.language, row.task) for row in test_set.utterances]
        for model, known in trained.items():
            warnings += [s.warning(name=name) for s in shared_with_training(digests, known)]
            for group in dict.fromkeys(groups):
                chosen = np.array([its == group for its in groups], bool)
                shared = shared_with_training(digests, known, chosen)
                found[model, name, *group] = tuple(shared)
    return list(dict.fromkeys(warnings)), found
