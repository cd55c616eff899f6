#!/usr/bin/env bash
# Not in the paper: every merging method at its best step on the dev sets, beside task arithmetic of the
# same step norm, and what each leaves of the other task. `methods.sh` says what it takes.
. "$(dirname "$0")/common.sh"
[ -n "$demo" ] && finals=(--finalists 1 --beam 1) || finals=()

evaluate_base
finetune_each asr
mkdir -p "$own/tuned"
sets=() deltas=() both=()
for language in "${languages[@]}"; do
    sets+=(--data "data/${language}_asr.dev.jsonl")
    deltas+=("$own/delta/${language}_asr.delta")
    both+=("${language}_asr" "${language}_st")
done

options_of() { # METHOD
    case $1 in
        lors) echo --svp 0.05 --mp 0.2 ;;
        *) echo --method "$1" ;;
    esac
}

# Search for the lambda of a method, over the same step norms for each: those that task arithmetic has
# at 0.1, 0.15 ... 0.5. At lambda 1 one method goes ten times as far as another.
merge_as methods/one_ta "${deltas[@]}" --scale 1
choose() { # METHOD
    local name=$1_best grid options
    read -ra options <<< "$(options_of "$1")"
    merge_as "methods/one_$1" "${deltas[@]}" "${options[@]}" --scale 1
    grid=$(python3 -c "
ratio = $(step_norm "methods/one_$1") / $(step_norm methods/one_ta)
print(':'.join(f'{length / ratio:.6g}' for length in (0.1, 0.5, 0.05)))")
    [ -e "$own/tuned/$name.toml" ] || run lorsmerge search base "${deltas[@]}" "${sets[@]}" "${options[@]}" \
        --scale "$grid" --sampler grid "${finals[@]}" --best --quiet --csv "$own/tuned/$name.csv" -o "$own/tuned/$name.toml"
    merge_as "$name" --recipe "$own/tuned/$name.toml"
}

choose ta
models=("ta_best:$own=$own/merged/ta_best") tuned=(--tuned ta_best)
for method in lors ties tsv_m iso_c model_stock; do
    name=${method}_best
    choose $method
    control "$name" "${deltas[@]#"$own/delta/"}"
    models+=("$name:$own=$own/merged/$name" "ta_as_$name:$own=$own/merged/ta_as_$name")
    tuned+=(--tuned "$name")
done
evaluate "$own/results/$script.json" "${both[@]}" -- "${models[@]}"
about=(--title "Merging methods, each beside its control")
report --against ta_best "${tuned[@]}" -- seed*/results/finetuned_??_asr.json seed*/results/"$script".json
