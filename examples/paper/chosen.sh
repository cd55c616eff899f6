# Where does pruning pay? Lambda, r and p of each method are chosen on the dev sets, by as many
# trials, and the choices scored on the test sets. Sourced with $overfit set: to nothing, for the
# fine-tunes of Table 1, or to _overfit, for overfitted ones: made of a quarter of the clips, every third
# word of their transcripts wrong, in twice as many steps, with the last weights in place of the best.
. "$(dirname "$0")/common.sh"
[ -n "$demo" ] && finals=(--finalists 1 --beam 1) || finals=()

# Every third word of a manifest's transcripts is taken from another of its rows.
spoil() { # FROM TO
    python3 - "$1" "$2" <<'END'
import json, os, random, sys

source, target = sys.argv[1:]
folder = os.path.dirname(os.path.realpath(source))
rows = [json.loads(line) for line in open(source, encoding="utf-8")]
words = [word for row in rows for word in row["text"].split()]
draw = random.Random(source)
with open(target, "w", encoding="utf-8") as file:
    for row in rows:
        said = row["text"].split()
        row["text"] = " ".join(draw.choice(words) if draw.random() < 1 / 3 else word for word in said)
        row["audio_filepath"] = os.path.join(folder, row["audio_filepath"])
        print(json.dumps(row, ensure_ascii=False), file=file)
END
}

finetune_too_far() {
    local language name options
    mkdir -p wrong
    share=2 # of the steps
    for language in "${languages[@]}"; do
        name=${language}_asr_overfit
        [ -e "wrong/${language}_asr.jsonl" ] || spoil "data/${language}_asr.train.jsonl" "wrong/${language}_asr.jsonl"
        mapfile -t options < <(training "${language}_asr")
        [ -e "$own/ft/$name" ] || run lorsmerge finetune base --data "wrong/${language}_asr.jsonl" \
            "${options[@]}" --hours "$(python3 -c "print($whole / 4)")" --average-last 1 --seed "$seed" \
            --resume --delta "$own/delta/$name.delta" -o "$own/ft/$name"
        evaluate "$own/results/finetuned_overfit_$language.json" "${language}_asr" -- "finetuned:$own=$own/ft/$name"
    done
}

# Search for a method's ratios and lambda, and merge by what was found: choose KIND
choose() {
    local name=$1_tuned$overfit space=(--scale 0.1:0.5:0.025)
    case $1 in mp | lors) space+=(--mp 0.05,0.1,0.2,0.4,0.6) ;; esac
    case $1 in svp | lors) space+=(--svp 0.01,0.02,0.05,0.1,0.2) ;; esac
    [ "$1" = ta ] && space+=(--sampler grid) || space+=(--trials 17) # as many as the grid of ta has
    [ -e "$own/tuned/$name.toml" ] || run lorsmerge search base "${deltas[@]/#/$own/delta/}" "${sets[@]}" \
        "${space[@]}" "${finals[@]}" --best --quiet --csv "$own/tuned/$name.csv" -o "$own/tuned/$name.toml"
    merge_as "$name" --recipe "$own/tuned/$name.toml"
}

evaluate_base
if [ -n "$overfit" ]; then finetune_too_far; else finetune_each asr; fi
mkdir -p "$own/tuned"
sets=() deltas=()
for language in "${languages[@]}"; do
    sets+=(--data "data/${language}_asr.dev.jsonl")
    deltas+=("${language}_asr$overfit.delta")
done
choose ta
models=("ta_tuned:$own=$own/merged/ta_tuned$overfit")
for kind in mp svp lors; do
    name=${kind}_tuned
    choose $kind
    control "$name$overfit" "${deltas[@]}"
    models+=("$name:$own=$own/merged/$name$overfit" "ta_as_$name:$own=$own/merged/ta_as_$name$overfit")
done
evaluate "$own/results/$script.json" "${languages[@]/%/_asr}" -- "${models[@]}"
[ -n "$overfit" ] && alone=finetuned_overfit_?? || alone=finetuned_??_asr
report --against ta_tuned --tuned ta_tuned --tuned mp_tuned --tuned svp_tuned --tuned lors_tuned -- \
    seed*/results/$alone.json seed*/results/"$script".json
