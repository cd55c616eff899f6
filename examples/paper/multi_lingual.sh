# Tables 1 and 2: five languages, one task. Sourced with $task set.
. "$(dirname "$0")/common.sh"
sets=()
for language in "${languages[@]}"; do sets+=("${language}_$task"); done

evaluate_base
finetune_each "$task"
finetune "ml_$task" "${sets[@]}" # multi-lingual training
merges "_ml_$task" "${sets[@]}"
models=("ml_training:$own=$own/ft/ml_$task")
for kind in "${all_kinds[@]}"; do
    models+=("$kind:$own=$own/merged/${kind}_ml_$task")
done
evaluate "$own/results/$script.json" "${sets[@]}" -- "${models[@]}"
report -- seed*/results/finetuned_*_"$task".json seed*/results/"$script".json
