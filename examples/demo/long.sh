#!/usr/bin/env bash
# The paper's Tables 2 to 4 in miniature: recognition and translation, ten deltas, joint training.
#
#     examples/demo/long.sh [FOLDER [BUNDLE [SEED]]]
#
# About half an hour on two cores with the bundle of the repository. One with more test clips:
#     python examples/demo/make_bundle.py examples/demo/bundle/base big --test 1000
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-demo-long}
bundle=$(realpath "${2:-$here/bundle}")
seed=${3:-0}
languages=(ca de es fr it)
ratios=(--svp 0.05 --mp 0.2)

run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

mkdir -p "$folder"
cd "$folder"
ln -sfn "$bundle" data
ln -sfn "$bundle/base" base
mkdir -p ft merged

for task in asr st; do
    tests=() joint=() dev=()
    for language in "${languages[@]}"; do
        name=${language}_$task
        tests+=(--data "$language=data/$name.test.jsonl")
        joint+=(--data "data/$name.train.jsonl")
        dev+=(--dev "data/$name.dev.jsonl")
        [ -e "ft/$name" ] || run lorsmerge finetune base --data "data/$name.train.jsonl" \
            --dev "data/$name.dev.jsonl" --recipe "$here/finetune.toml" --seed "$seed" --resume \
            --delta "$name.delta" -o "ft/$name"
    done
    # the same number of epochs over five times the data
    [ -e "ft/joint_$task" ] || run lorsmerge finetune base "${joint[@]}" "${dev[@]}" \
        --recipe "$here/finetune.toml" --steps 96 --seed "$seed" --resume -o "ft/joint_$task"

    run lorsmerge merge base *_$task.delta --method wa -o "merged/wa_$task" --force
    run lorsmerge merge base *_$task.delta --scale 0.2 -o "merged/ta_$task" --force
    run lorsmerge merge base *_$task.delta "${ratios[@]}" --scale 0.2 -o "merged/lors_$task" --force

    said=said_$task.jsonl
    run lorsmerge eval pretrained=base "${tests[@]}" --beam 1 --hypotheses "$said" --quiet
    for language in "${languages[@]}"; do
        name=${language}_$task
        run lorsmerge eval "finetuned=ft/$name" --data "$language=data/$name.test.jsonl" \
            --beam 1 --hypotheses "$said" --quiet
    done
    run lorsmerge eval "joint=ft/joint_$task" "wa=merged/wa_$task" "ta=merged/ta_$task" \
        "lors=merged/lors_$task" "${tests[@]}" --beam 1 --hypotheses "$said" --quiet
done

# one model for five languages and both tasks: half of lambda, because there are twice the deltas
run lorsmerge merge base *_asr.delta *_st.delta --scale 0.1 -o merged/ta_ten --force
run lorsmerge merge base *_asr.delta *_st.delta --scale 0.1 "${ratios[@]}" -o merged/lors_ten --force
for task in asr st; do
    tests=()
    for language in "${languages[@]}"; do
        tests+=(--data "$language=data/${language}_$task.test.jsonl")
    done
    run lorsmerge eval ta_ten=merged/ta_ten lors_ten=merged/lors_ten "${tests[@]}" \
        --beam 1 --hypotheses "said_$task.jsonl" --quiet
    run lorsmerge eval --score-only --hypotheses "said_$task.jsonl" -o "results_$task.json" --force
done
printf '\n%d minutes\n' $((SECONDS / 60))
