#!/usr/bin/env bash
# Figure 4: score against hours of training data: a quarter, a half and all of it.
# `figure4.sh` says what it takes.
. "$(dirname "$0")/common.sh"

evaluate_base
for share in 0.25 0.5 1; do
    part=()
    size=_$share
    [ $share = 1 ] && size= || part=(--hours "$(python3 -c "print($share * $whole)")")
    for task in asr st; do
        sets=("${languages[@]/%/_$task}")
        deltas=()
        for set in "${sets[@]}"; do
            finetune "$set$size" "$set" -- "${part[@]}"
            deltas+=("$set$size")
            evaluate "$own/results/${script}_finetuned_$set$size.json" "$set" -- \
                "finetuned:$own-$share=$own/ft/$set$size"
        done
        finetune "ml_$task$size" "${sets[@]}" -- "${part[@]}"
        models=("ml_training:$own-$share=$own/ft/ml_$task$size")
        for kind in ta lors; do
            merge "${kind}_ml_$task$size" $kind "${deltas[@]}"
            models+=("$kind:$own-$share=$own/merged/${kind}_ml_$task$size")
        done
        evaluate "$own/results/${script}_$task$size.json" "${sets[@]}" -- "${models[@]}"
    done
done
report -- seed*/results/"$script"_*.json
