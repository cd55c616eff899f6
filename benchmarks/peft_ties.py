"""TIES by PEFT's functions on whole models, tensor by tensor: a peer of benchmarks/methods.py.

python peft_ties.py OUT DENSITY BASE FINETUNE...   all of them .safetensors files
"""

import sys

import torch
from peft.utils.merge_utils import ties
from safetensors import safe_open
from safetensors.torch import save_file


def main() -> None:
    out, density, base, *finetunes = sys.argv[1:]
    weights = torch.ones(len(finetunes))
    opened = [safe_open(file, framework="pt") for file in (base, *finetunes)]
    merged = {}
    for name in opened[0].keys():  # noqa: SIM118
        first, *others = (file.get_tensor(name) for file in opened)
        deltas = [tensor - first for tensor in others]
        merged[name] = first + ties(deltas, weights, float(density))
    save_file(merged, out)


main()
