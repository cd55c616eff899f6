#!/usr/bin/env bash
# Tables 3 and 11: ASR and ST of one language merged, for each of five. `table3.sh` says what it takes.
. "$(dirname "$0")/common.sh"

evaluate_base
finetune_each asr st
for language in "${languages[@]}"; do
    pair=("${language}_asr" "${language}_st")
    finetune "mt_$language" "${pair[@]}" # multi-task training
    merges "_mt_$language" "${pair[@]}"
    models=("mt_training:$own=$own/ft/mt_$language")
    for kind in "${all_kinds[@]}"; do models+=("${kind}_mt:$own=$own/merged/${kind}_mt_$language"); done
    evaluate "$own/results/${script}_$language.json" "${pair[@]}" -- "${models[@]}"
done
report --against ta_mt -- seed*/results/finetuned_??_{asr,st}.json seed*/results/"${script}"_??.json
