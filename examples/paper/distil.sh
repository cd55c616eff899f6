#!/usr/bin/env bash
# Not in the paper: one model that learns from what the fine-tunes say. It starts from the base or from their
# merge, and hears their training audio or audio that nobody labelled, for as many steps as joint training
# or for few; beside them joint training, the merge, and few clips with true labels in place of many
# without. What each does to translation, which none of them learns, is scored too. `distil.sh` says what it takes.
. "$(dirname "$0")/common.sh"
[ -n "$demo" ] && finals=(--finalists 1 --beam 1) || finals=()
[ -n "$demo" ] && short=(--steps 40) || short=(--epochs 4)
few=50 # clips of a language
[ -n "$demo" ] && clip=1.48 || clip=5.5
asr=("${languages[@]/%/_asr}")
st=("${languages[@]/%/_st}")

# One half of each test set is scored. The other is audio that no fine-tune has heard: `new`, of which
# `few` have their labels.
halve() {
    python3 - "$few" "$@" <<'END'
import json, os, sys

few, *names = sys.argv[1:]
for name in names:
    source = f"data/{name}.test.jsonl"
    folder = os.path.dirname(os.path.realpath(source))
    rows = [json.loads(line) for line in open(source, encoding="utf-8")]
    for row in rows:
        row["audio_filepath"] = os.path.join(folder, row["audio_filepath"])
    new = rows[len(rows) // 2 :]
    parts = {"scored": rows[: len(rows) // 2], "few": new[: int(few)]}
    parts["new"] = [{key: row[key] for key in row if key not in ("text", "source_text")} for row in new]
    for part, chosen in parts.items():
        os.makedirs(part, exist_ok=True)
        with open(f"{part}/{name}.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen)
END
}
[ -e scored/it_st.jsonl ] || halve "${asr[@]}" "${st[@]}"

tests=scored/SET.jsonl

# The fine-tunes' texts: teach NAME MANIFEST... [-- OPTION...]
teach() {
    local name=$1 language files=() options=()
    shift
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        files+=(--data "$1")
        shift
    done
    [ $# = 0 ] || shift
    for language in "${languages[@]}"; do options+=(--teacher "$language=$own/ft/${language}_asr"); done
    [ -e "$own/$name.jsonl" ] || run lorsmerge transcribe "${files[@]}" "${options[@]}" "$@" \
        --beam $beam --quiet -o "$own/$name.jsonl"
}

# A training without a dev set, the last weights of which count: learn NAME START MANIFEST... [-- OPTION...]
learn() {
    local name=$1 start=$2 files=() options
    shift 2
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        files+=(--data "$1")
        shift
    done
    [ $# = 0 ] || shift
    mapfile -t options < <(training "${asr[@]}")
    [ -e "$own/ft/$name" ] || run lorsmerge finetune "$start" "${files[@]}" "${options[@]}" "$@" \
        --seed "$seed" --resume --quiet -o "$own/ft/$name"
}

say "Fine-tunes, joint training, and the merge at its best lambda on the dev sets."
sets=() deltas=()
for set in "${asr[@]}"; do
    finetune "$set" "$set"
    sets+=(--data "data/$set.dev.jsonl")
    deltas+=("$own/delta/$set.delta")
done
finetune ml_asr "${asr[@]}"
mkdir -p "$own/tuned"
[ -e "$own/tuned/ta_best.toml" ] || run lorsmerge search base "${deltas[@]}" "${sets[@]}" --method ta \
    --scale 0.1:0.5:0.05 --sampler grid "${finals[@]}" --best --quiet -o "$own/tuned/ta_best.toml"
merge_as ta_best --recipe "$own/tuned/ta_best.toml"
merge=$own/merged/ta_best

say "What the fine-tunes say, of the audio that they learnt from and of new audio."
train=("${asr[@]/#/data/}") unheard=("${asr[@]/#/new/}")
teach heard "${train[@]/%/.train.jsonl}"
teach new "${unheard[@]/%/.jsonl}"
[ -e "$own/sure.jsonl.journal" ] || cp "$own/new.jsonl.journal" "$own/sure.jsonl.journal" # the same texts
teach sure "${unheard[@]/%/.jsonl}" -- --min-confidence -0.25

say "Learn from it."
heard=$own/heard.jsonl new=$own/new.jsonl labelled=("${asr[@]/#/few/}")
learn distil_ta "$merge" "$heard" -- "${short[@]}"
learn distil_base base "$heard"
learn distil_ta_new "$merge" "$new" -- "${short[@]}"
for count in 10 50; do # new clips of a language, of which they are $clip seconds long
    hours=()
    for language in "${languages[@]}"; do
        hours+=(--hours "$language=$(python3 -c "print(f'{$count * $clip / 3600:.5f}')")")
    done
    learn distil_ta_new_$count "$merge" "$new" -- "${short[@]}" "${hours[@]}"
done
learn distil_base_new base "$new"
learn distil_base_sure base "$own/sure.jsonl"
learn distil_base_short base "$heard" -- "${short[@]}"
learn distil_ta_long "$merge" "$heard"
learn few_ta "$merge" "${labelled[@]/%/.jsonl}" -- "${short[@]}"
learn few_base base "${labelled[@]/%/.jsonl}" -- "${short[@]}"

learnt=(distil_ta distil_ta_long distil_ta_new_10 distil_ta_new_50 distil_ta_new distil_base_short distil_base distil_base_new
    distil_base_sure few_ta few_base)
models=("ml_training:$own=$own/ft/ml_asr" "ta_best:$own=$merge")
for name in "${learnt[@]}"; do models+=("$name:$own=$own/ft/$name"); done
evaluate results/${script}_pretrained.json "${asr[@]}" "${st[@]}" -- pretrained=base
for set in "${asr[@]}"; do
    evaluate "$own/results/${script}_finetuned_$set.json" "$set" -- "finetuned:$own=$own/ft/$set"
done
evaluate "$own/results/$script.json" "${asr[@]}" -- "${models[@]}"
evaluate "$own/results/${script}_st.json" "${st[@]}" -- "${models[@]}"
run lorsmerge report results/${script}_pretrained.json seed*/results/"$script"{_finetuned_*,,_st}.json \
    --against ta_best --tuned ta_best --title "One model taught by the fine-tunes" --paper "$paper/paper.toml" -o "$script" --force

# A bundle made with --easy: what is left of the audio that the base knew before
if [ -e data/it_asr.easy.jsonl ]; then
    tests=data/SET.easy.jsonl
    evaluate "results/${script}_easy_pretrained.json" "${asr[@]}" -- pretrained=base
    evaluate "$own/results/${script}_easy.json" "${asr[@]}" -- "${models[@]}"
    sed '/^\[asr\]/,$d' "$paper/paper.toml" > names.toml # without the paper's figures, which are of other audio
    run lorsmerge report "results/${script}_easy_pretrained.json" seed*/results/"${script}_easy.json" \
        --against ta_best --tuned ta_best --title "The same models on audio as the base knew it" \
        --paper names.toml -o "${script}_easy" --force
fi
printf '\n%s, %d minutes %d seconds\n' "$PWD/$script/report.html" $((SECONDS / 60)) $((SECONDS % 60))
