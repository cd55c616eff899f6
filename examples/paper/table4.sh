#!/usr/bin/env bash
# Table 4: five languages and both tasks, by the four combinations of training and merging.
# `table4.sh` says what it takes.
. "$(dirname "$0")/common.sh"
asr=("${languages[@]/%/_asr}")
st=("${languages[@]/%/_st}")

evaluate_base
finetune_each asr st

say "Trained on everything at once."
finetune ml_mt "${asr[@]}" "${st[@]}"

say "Trained one by one, all merged."
both() { # SUFFIX DELTA...: task arithmetic, LoRS, and its control
    local suffix=$1
    shift
    merge "ta$suffix" ta "$@"
    merge "lors$suffix" lors "$@"
    control "lors$suffix" "${@/%/.delta}"
}
both _ml_mt "${asr[@]}" "${st[@]}"

say "Both tasks trained jointly for each language, languages merged."
mt=()
for language in "${languages[@]}"; do
    finetune "mt_$language" "${language}_asr" "${language}_st"
    evaluate "$own/results/mt_training_$language.json" "${language}_asr" "${language}_st" -- \
        "mt_training:$own=$own/ft/mt_$language"
    mt+=("mt_$language")
done
both _mt_then_ml "${mt[@]}"

say "All languages trained jointly for each task, tasks merged."
finetune ml_asr "${asr[@]}"
finetune ml_st "${st[@]}"
evaluate "$own/results/ml_training_asr.json" "${asr[@]}" -- "ml_training:$own=$own/ft/ml_asr"
evaluate "$own/results/ml_training_st.json" "${st[@]}" -- "ml_training:$own=$own/ft/ml_st"
both _ml_then_mt ml_asr ml_st

models=("ml_mt_training:$own=$own/ft/ml_mt")
for suffix in _ml_mt _mt_then_ml _ml_then_mt; do
    for kind in ta lors ta_as_lors; do models+=("$kind$suffix:$own=$own/merged/$kind$suffix"); done
done
evaluate "$own/results/$script.json" "${asr[@]}" "${st[@]}" -- "${models[@]}"
report --against ta_ml_mt -- seed*/results/finetuned_??_{asr,st}.json \
    seed*/results/m?_training_*.json seed*/results/"$script".json
