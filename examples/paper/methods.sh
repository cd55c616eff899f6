#!/usr/bin/env bash
# Not in the paper: every merging method at its best step on the dev sets, beside task arithmetic of the
# same step norm, and what each leaves of the other task; two lambdas by half, and RegMean of the
# encoder. `methods.sh` says what it takes.
. "$(dirname "$0")/common.sh"
[ -n "$demo" ] && finals=(--finalists 1 --beam 1) || finals=()

evaluate_base
finetune_each asr
mkdir -p "$own"/{tuned,stats}
sets=() deltas=() asr=() st=()
for language in "${languages[@]}"; do
    sets+=(--data "data/${language}_asr.dev.jsonl")
    deltas+=("$own/delta/${language}_asr.delta")
    asr+=("${language}_asr") st+=("${language}_st")
done

# Search for the lambda of a method, over the same step norms for each: those that task arithmetic has
# at 0.1, 0.15 ... 0.5. At lambda 1 one method goes ten times as far as another.
merge_as methods/one_ta "${deltas[@]}" --scale 1
choose() { # NAME OPTION...
    local name=$1 grid
    shift
    merge_as "methods/one_$name" "${deltas[@]}" "$@" --scale 1
    grid=$(python3 -c "
ratio = $(step_norm "methods/one_$name") / $(step_norm methods/one_ta)
print(':'.join(f'{length / ratio:.6g}' for length in (0.1, 0.5, 0.05)))")
    best "$name" "$@" --scale "$grid"
}
best() { # NAME OPTION...
    local name=$1_best
    shift
    [ -e "$own/tuned/$name.toml" ] || run lorsmerge search base "${deltas[@]}" "${sets[@]}" "$@" \
        --sampler grid "${finals[@]}" --best --quiet --csv "$own/tuned/$name.csv" -o "$own/tuned/$name.toml"
    merge_as "$name" --recipe "$own/tuned/$name.toml"
}

choose ta
models=("ta_best:$own=$own/merged/ta_best") tuned=(--tuned ta_best) controls=()
controlled() { # NAME
    local name=$1_best
    control "$name" "${deltas[@]#"$own/delta/"}"
    models+=("$name:$own=$own/merged/$name") tuned+=(--tuned "$name")
    controls+=("ta_as_$name:$own=$own/merged/ta_as_$name")
}
choose lors --svp 0.05 --mp 0.2
controlled lors
for method in ties tsv_m iso_c model_stock dare star localize consensus boost; do
    choose $method --method $method
    controlled $method
done

# As many trials for two lambdas, and none for what hears the training audio. The step of RegMean is no
# measure of it: it is long where hardly any input goes.
best half --method ta --by half --scale 0.1:0.3:0.1
controlled half
stats=()
for language in "${languages[@]}"; do
    file=$own/stats/${language}_asr.stats
    [ -e "$file" ] || run lorsmerge stats "$own/ft/${language}_asr" --data "data/${language}_asr.train.jsonl" \
        --half encoder --quiet -o "$file"
    stats+=(--stats "$file")
done
merge_as regmean_encoder "${deltas[@]}" --method regmean "${stats[@]}"
models+=("regmean_encoder:$own=$own/merged/regmean_encoder")

evaluate "$own/results/$script.json" "${asr[@]}" -- "${models[@]}" "${controls[@]}"
evaluate "$own/results/${script}_st.json" "${st[@]}" -- "${models[@]}"
about=(--title "Merging methods, each beside its control")
report --against ta_best "${tuned[@]}" -- seed*/results/finetuned_??_asr.json seed*/results/"$script"{,_st}.json
