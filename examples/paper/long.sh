#!/usr/bin/env bash
# Not in the paper: what fine-tuning on clips takes from a model that hears whole recordings, and what
# merging gives back. Each language is fine-tuned on the same sentences in two ways: clip by clip, and
# packed into windows with timestamps and the text before. Scored are clips, recordings of minutes, the
# times of their sentences, the language that is heard, and what is written where nobody speaks.
# `long.sh` says what it takes; its bundle comes from examples/demo/make_recordings.py.
. "$(dirname "$0")/common.sh"
asr=("${languages[@]/%/_asr}")
if [ ! -e data/ca_long.test.jsonl ]; then
    echo "$script.sh needs a bundle of recordings: give --bundle DIR, of examples/demo/make_recordings.py." >&2
    exit 1
fi

# Windows of three sentences or so: a third as many of them make as many epochs in as many steps.
packed=(--pack 8 --timestamps 0.5 --condition 0.5 --keep-language --batch-size 11 --effective-batch 11)
clips=()
lambdas=(0.1 0.2 0.3 0.45)

# Four kinds of test: hear RESULTS LANGUAGE... -- MODEL... writes RESULTS.clips.json and so on
hear() {
    local results=$1 spoken=() language options kind sets
    shift
    while [ "$1" != -- ]; do spoken+=("$1") && shift; done
    shift
    for kind in clips long silence language; do
        [ ! -e "$results.$kind.json" ] || continue
        sets=()
        for language in "${spoken[@]}"; do
            case $kind in
                clips) sets+=(--data "$language=data/${language}_asr.test.jsonl") options=() ;;
                long | silence) sets+=(--data "$language=data/${language}_$kind.test.jsonl") options=(--long) ;;
            esac
        done
        if [ $kind = language ]; then # of whatever language: some clips of each
            for language in "${languages[@]}"; do sets+=(--data "$language=data/${language}_asr.test.jsonl"); done
            options=(--language auto --hours 0.02)
        fi
        run lorsmerge eval "$@" "${sets[@]}" "${options[@]}" --beam $beam \
            --hypotheses "$results.$kind.said.jsonl" --quiet -o "$results.$kind.json"
        rm -f "$results.$kind.said.jsonl" # the results hold every hypothesis
    done
}

hear results/pretrained "${languages[@]}" -- pretrained=base
models=()
for way in clips packed; do
    declare -n options=$way
    deltas=()
    for language in "${languages[@]}"; do
        finetune "${language}_$way" "${language}_asr" -- "${options[@]}"
        hear "$own/results/finetuned_${language}_$way" "$language" -- \
            "finetuned_$way:$own=$own/ft/${language}_$way"
        deltas+=("$own/delta/${language}_$way.delta")
    done
    for scale in "${lambdas[@]}"; do
        merge_as "ta_${way}_$scale" "${deltas[@]}" --scale "$scale"
        models+=("ta_${way}_$scale:$own=$own/merged/ta_${way}_$scale")
    done
    merge_as "lors_$way" "${deltas[@]}" --scale 0.2 --svp 0.05 --mp 0.2
    control "lors_$way" "${languages[@]/%/_$way.delta}"
    finetune "ml_$way" "${asr[@]}" -- "${options[@]}"
    models+=("lors_$way:$own=$own/merged/lors_$way" "ta_as_lors_$way:$own=$own/merged/ta_as_lors_$way")
    models+=("joint_$way:$own=$own/ft/ml_$way")
done
hear "$own/results/$script" "${languages[@]}" -- "${models[@]}"

python3 "$paper/long_table.py" . -o "$script"
printf '\n%s, %d minutes %d seconds\n' "$PWD/$script/table.md" $((SECONDS / 60)) $((SECONDS % 60))
