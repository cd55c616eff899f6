#!/usr/bin/env bash
# Figure 3: score against the number of languages, over all combinations of 2 to 5.
# `figure3.sh` says what it takes.
. "$(dirname "$0")/common.sh"

evaluate_base
finetune_each asr st
combinations=$(python3 -c "
from itertools import combinations
for count in range(2, 6):
    for chosen in combinations('${languages[*]}'.split(), count):
        print('+'.join(chosen))")
for task in asr st; do
    for chosen in $combinations; do
        results=$own/results/${script}_${chosen}_$task.json
        [ ! -e "$results" ] || continue
        sets=(${chosen//+/_$task }_"$task")
        models=()
        for kind in ta lors; do
            merge "$script/${kind}_${chosen}_$task" $kind "${sets[@]}"
            models+=("$kind:$own-$chosen=$own/merged/$script/${kind}_${chosen}_$task")
        done
        evaluate "$results" "${sets[@]}" -- "${models[@]}"
        rm -r "$own/merged/$script/"{ta,lors}"_${chosen}_$task"{,.json}
    done
done
report -- seed*/results/finetuned_??_{asr,st}.json seed*/results/"$script"_*.json
