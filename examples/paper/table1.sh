#!/usr/bin/env bash
# Table 1: five languages' ASR fine-tunes merged into one model. `table1.sh` says what it takes.
task=asr
. "$(dirname "$0")/multi_lingual.sh"
