#!/usr/bin/env bash
# Not in the paper: every merging method at its best step on the dev sets, beside task arithmetic of the
# same step norm, and what each leaves of the other task; two lambdas by half, and RegMean of the
# encoder. With --ten of the deltas of both tasks. `methods.sh` says what it takes.
. "$(dirname "$0")/common.sh"
[ -n "$demo" ] && finals=(--finalists 1 --beam 1) || finals=()
tasks=(asr) lambdas="0.1, 0.5, 0.05" halves=0.1:0.3:0.1
[ -z "$ten" ] || tasks=(asr st) lambdas="0.05, 0.25, 0.025" halves=0.05:0.15:0.05

evaluate_base
finetune_each "${tasks[@]}"
mkdir -p "$own"/{tuned,stats}
sets=() deltas=() asr=("${languages[@]/%/_asr}") st=("${languages[@]/%/_st}")
for task in "${tasks[@]}"; do
    for language in "${languages[@]}"; do
        sets+=(--data "data/${language}_$task.dev.jsonl")
        deltas+=("$own/delta/${language}_$task.delta")
    done
done

# Search for the lambda of a method, over the same step norms for each: those that task arithmetic has
# at 0.1, 0.15 ... 0.5, or half of these for ten deltas. At lambda 1 one method goes ten times as far as
# another.
merge_as "methods/${ten}one_ta" "${deltas[@]}" --scale 1
choose() { # NAME OPTION...
    local name=$1 grid
    shift
    merge_as "methods/${ten}one_$name" "${deltas[@]}" "$@" --scale 1
    grid=$(python3 -c "
ratio = $(step_norm "methods/${ten}one_$name") / $(step_norm "methods/${ten}one_ta")
print(':'.join(f'{length / ratio:.6g}' for length in ($lambdas)))")
    best "$name" "$@" --scale "$grid"
}
best() { # NAME OPTION...
    local name=$ten$1_best
    shift
    [ -e "$own/tuned/$name.toml" ] || run lorsmerge search base "${deltas[@]}" "${sets[@]}" "$@" \
        --sampler grid "${finals[@]}" --best --quiet --csv "$own/tuned/$name.csv" -o "$own/tuned/$name.toml"
    merge_as "$name" --recipe "$own/tuned/$name.toml"
}

choose ta
models=("ta_best:$own=$own/merged/${ten}ta_best") tuned=(--tuned ta_best) controls=()
controlled() { # NAME
    local name=$1_best
    control "$ten$name" "${deltas[@]#"$own/delta/"}"
    models+=("$name:$own=$own/merged/$ten$name") tuned+=(--tuned "$name")
    controls+=("ta_as_$name:$own=$own/merged/ta_as_$ten$name")
}
choose lors --svp 0.05 --mp 0.2
controlled lors
for method in ties tsv_m iso_c model_stock dare star localize consensus boost; do
    choose $method --method $method
    controlled $method
done

# As many trials for two lambdas, and none for what hears the training audio. The step of RegMean is no
# measure of it: it is long where hardly any input goes.
best half --method ta --by half --scale $halves
controlled half
stats=()
for delta in "${deltas[@]}"; do
    name=$(basename "$delta" .delta)
    file=$own/stats/$name.stats
    [ -e "$file" ] || run lorsmerge stats "$own/ft/$name" --data "data/$name.train.jsonl" \
        --half encoder --quiet -o "$file"
    stats+=(--stats "$file")
done
merge_as "${ten}regmean_encoder" "${deltas[@]}" --method regmean "${stats[@]}"
models+=("regmean_encoder:$own=$own/merged/${ten}regmean_encoder")

# The other task is what no delta was made for, or the half of what ten were.
script=${ten}methods
evaluate "$own/results/$script.json" "${asr[@]}" -- "${models[@]}" "${controls[@]}"
evaluate "$own/results/${script}_st.json" "${st[@]}" -- "${models[@]}"
about=(--title "Merging methods of ${#deltas[@]} deltas, each beside its control")
finetuned=()
for task in "${tasks[@]}"; do finetuned+=(seed*/results/finetuned_??_"$task".json); done
report --against ta_best "${tuned[@]}" -- "${finetuned[@]}" seed*/results/"$script"{,_st}.json
