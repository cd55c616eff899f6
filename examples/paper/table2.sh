#!/usr/bin/env bash
# Table 2: five languages' ST fine-tunes merged into one model. `table2.sh` says what it takes.
task=st
. "$(dirname "$0")/multi_lingual.sh"
