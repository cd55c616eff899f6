#!/usr/bin/env bash
# Figure 5: single ASR fine-tunes, pruned by SVP or by MP to a range of ratios, for three sizes of
# training data; beside them, the same fine-tunes shrunk to the same norm. `figure5.sh` says what it takes.
. "$(dirname "$0")/common.sh"
scale=1 # lambda

evaluate_base
for share in 0.25 0.5 1; do
    part=()
    size=_$share
    [ $share = 1 ] && size= || part=(--hours "$(python3 -c "print($share * $whole)")")
    for language in "${languages[@]}"; do
        set=${language}_asr name=${language}_asr$size
        results=$own/results/${script}_$name.json
        [ ! -e "$results" ] || continue
        finetune "$name" "$set" -- "${part[@]}"
        models=("finetuned:$own-$share=$own/ft/$name")
        for ratio in svp=0.01 svp=0.05 svp=0.2 svp=0.5 mp=0.05 mp=0.1 mp=0.2 mp=0.4; do
            kind=${ratio%=*} point=${ratio/=/}
            step=$script/${point}_$name
            merge_as "$step" "$own/delta/$name.delta:$ratio" --scale $scale
            models+=("${kind}_one:$own-$share-$point=$own/merged/$step")
            merge_as "$script/as_${point}_$name" "$own/delta/$name.delta" --step-norm-of "$own/merged/$step"
            models+=("ta_as_${kind}_one:$own-$share-$point=$own/merged/$script/as_${point}_$name")
        done
        evaluate "$results" "$set" -- "${models[@]}"
        rm -r "$own/merged/$script"
    done
done
report --against finetuned -- seed*/results/"$script"_*.json
