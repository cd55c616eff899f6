"""What a person would write without lorsmerge: the peers of benchmarks/merge.py.

python plain_merge.py ta   BASE OUT FINETUNE...   task arithmetic, whole files in memory
python plain_merge.py lors BASE OUT FINETUNE...   the paper's formulas, torch.linalg.svd and topk
"""

import sys

import torch
from safetensors.torch import load_file, save_file

SCALE, SVP, MP = 0.15, 0.03, 0.4


def task_arithmetic(base, finetunes):
    return {
        name: weight + SCALE * sum(finetuned[name] - weight for finetuned in finetunes)
        for name, weight in base.items()
    }


def lors(delta):
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    rank = max(1, int(SVP * min(delta.shape)))
    low_rank = (u[:, :rank] * s[:rank]) @ vh[:rank]
    residual = delta - low_rank
    kept = residual.abs().flatten().topk(int(MP * residual.numel())).indices
    mask = torch.zeros(residual.numel(), dtype=torch.bool)
    mask[kept] = True
    return low_rank + residual * mask.view_as(residual)


def lors_merging(base, finetunes):
    merged = {}
    for name, weight in base.items():
        pruned = weight.ndim == 2 and name.endswith(".weight") and "embed" not in name
        deltas = [finetuned[name] - weight for finetuned in finetunes]
        merged[name] = weight + SCALE * sum(lors(d) if pruned else d for d in deltas)
    return merged


if __name__ == "__main__":
    what, base, out, *finetunes = sys.argv[1:]
    merge = {"ta": task_arithmetic, "lors": lors_merging}[what]
    merged = merge(load_file(base), [load_file(path) for path in finetunes])
    save_file(merged, out, metadata={"format": "pt"})
