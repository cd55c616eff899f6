# %% [markdown]
# # Several fine-tunes of a Whisper, one model
#
# Each cell is a step of the pipeline, and the first one says where your models and data lie. To try
# it without any, make models with random weights:
# `python examples/make_models.py . --size nano --finetunes ca de`.
# `force=True` lets a cell be run again.

# %%
from pathlib import Path

import torch
from safetensors.torch import load_file

from lorsmerge_cli import delta, evaluate, inspect, lors, merge, merge_state_dicts, prune

BASE = Path("base")  # the pretrained model: a folder, or a Hub id such as openai/whisper-small
FINETUNES = {"ca": Path("ca"), "de": Path("de")}  # language -> a fine-tune of it
TEST = Path("test.jsonl")  # what the models are scored on; nothing is scored where it is not there

# %% [markdown]
# ## What each fine-tune changed

# %%
deltas = {
    language: delta(
        BASE, folder, f"{language}.delta", task="asr", language=language, force=True
    ).output
    for language, folder in FINETUNES.items()
}
described = inspect(list(deltas.values()))
for pair in described.pairs:
    print(
        f"{pair.first} and {pair.second}: cosine {pair.cosine:+.3f}, {pair.sign_conflict:.0%} conflicts"
    )

# %% [markdown]
# ## How much of one matrix is low-rank and sparse

# %%
change = load_file(deltas["ca"])
name = next(name for name in change if name.endswith("fc1.weight"))
matrix = change[name]
for svp, mp in ((0.05, 0.0), (0.0, 0.4), (0.05, 0.4)):
    left = matrix - lors(matrix, svp=svp, mp=mp).to_dense()
    kept = 1 - float(left.square().sum() / matrix.square().sum())
    print(f"{name}, svp {svp:g}, mp {mp:g}: {kept:.1%} of the energy is kept")

# %% [markdown]
# ## One merged model
#
# `merge` prunes on the way. Pruning first and merging then gives the same bits, and small files to
# share.

# %%
report = merge(BASE, list(deltas.values()), "merged", svp=0.05, mp=0.4, scale=0.3, force=True)
print(f"{report.output}: a step of norm {report.step:.3g}; {report.pruned} tensors pruned")
for warning in report.warnings:
    print("warning:", warning)

small = [
    prune(path, path.with_suffix(".lors.delta"), svp=0.05, mp=0.4, force=True).output
    for path in deltas.values()
]
merge(BASE, small, "merged-in-two-steps", scale=0.3, force=True)

# %% [markdown]
# ## The same in memory
#
# A notebook that has models open need not write files.

# %%
base = load_file(BASE / "model.safetensors")
changes = [load_file(path) for path in deltas.values()]
state = merge_state_dicts(base, changes, svp=0.05, mp=0.4, scale=0.3)
written = load_file(report.output / "model.safetensors")
print(
    "equal to the model on disk:", all(torch.equal(state[name], written[name]) for name in written)
)

# %% [markdown]
# ## Scores

# %%
if TEST.exists():
    scores = evaluate(
        {"base": BASE, "lors": report.output, **FINETUNES}, TEST, "results.json", beam=1, force=True
    )
    for record in scores.records:
        print(
            f"{record.model:>5} {record.language} {record.task}: {record.metric} {record.score:.2f}"
        )
