#!/usr/bin/env bash
# Guess: `Dataset.map` computes its result anew after a change to the function, since the cache's fingerprint
# covers the function.
# Seen (datasets 5.2.0): a function defined in the script is hashed with its code, but one imported from a module
# only by its name. After an edit to that module (here, to a prompt), the next run reads the old rows from the
# cache, without a warning.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0
cd "$folder"
printf '{"query": "moon dust"}\n' >queries.jsonl

# Map the queries with a prompt; the function is in the script or in a module beside it.
mapped() { # prompt, module or script
  printf 'def prompted(row):\n    return {"text": "%s" + row["query"]}\n' "$1" >prompts.py
  {
    if [ "$2" = module ]; then echo 'from prompts import prompted'; else cat prompts.py; fi
    echo 'from datasets import load_dataset'
    echo 'print(load_dataset("json", data_files="queries.jsonl", split="train", cache_dir="cache").map(prompted)["text"][0])'
  } >script.py
  "$folder/venv/bin/python" -B script.py 2>/dev/null
}

for place in script module; do
  before=$(mapped "query: " $place) after=$(mapped "search: " $place)
  echo "function in the $place: \"$before\", after the edit \"$after\""
  [ "$before" = "query: moon dust" ] || { echo "the behaviour has changed"; exit 1; }
  [ "$after" = "$([ $place = script ] && echo search || echo query): moon dust" ] || { echo "the behaviour has changed"; exit 1; }
done
