#!/usr/bin/env bash
# A stranger's first loop (docs/first-loop.md): fresh environment, the wheel, `init`, an own tiny student and own
# questions made on the spot, real Kafka, a scripted teacher, diagnoses from outside and own labels, down to an
# adapter that is promoted and answers. Only documented commands.
#
#   tests/user/first_loop.sh            needs dist/skillloop-*.whl (make wheel) and KAFKA_HOME
#   LEND=FOLDER ...                     takes the libraries from this site-packages instead of downloading them
#   KEEP=FOLDER ...                     works in this new folder and leaves it there
set -euo pipefail
checkout=$(cd "$(dirname "$0")/../.." && pwd)
here=$checkout/tests/user
wheel=$(ls -t "$checkout"/dist/skillloop-*.whl | head -1)
work=${KEEP:-$(mktemp -d)}
mkdir -p "$work"
pids=()
finish() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait
    [ -n "${KEEP:-}" ] || rm -rf "$work"
}
trap finish EXIT
quietly() { # quietly COMMAND...: what it says is shown when it fails
    "$@" >"$work/pip.log" 2>&1 || { cat "$work/pip.log" >&2; return 1; }
}
phase() { echo "--- $((SECONDS)) s: $*"; }
start() { # start NAME COMMAND...: in the background, with a log of its own
    local name=$1
    shift
    "$@" >"$work/$name.log" 2>&1 &
    pids+=($!)
}
said() { # said FILE PATTERN: the first match in a growing file
    for _ in $(seq 600); do
        grep -om1 -- "$2" "$1" 2>/dev/null && return
        sleep 0.5
    done
    echo "$1 never said $2:" >&2
    cat "$1" >&2
    return 1
}

cd "$work" # nothing of the checkout is in sight
phase "a fresh environment with $(basename "$wheel")"
"${PYTHON:-python3.11}" -m venv env
if [ -n "${LEND:-}" ]; then
    echo "$LEND" >"$(env/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/lent.pth"
    quietly env/bin/pip install --disable-pip-version-check --no-deps --no-index --ignore-installed "$wheel"
else
    install="quietly env/bin/pip install --disable-pip-version-check --constraint $checkout/constraints.txt"
    $install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
    $install "$wheel[kafka,llm]"
fi
PATH=$work/env/bin:$PATH
export OMP_NUM_THREADS=1 TRANSFORMERS_VERBOSITY=error
skillloop --version

phase "my configuration, my questions with my labels, and a student that cannot multiply"
skillloop init mine --template online
python "$here/own_student.py" mine
sed -i mine/skillloop.toml \
    -e 's/^max_new_tokens = .*/max_new_tokens = 24/' -e 's/^batch_size = 16/batch_size = 120/' \
    -e 's/^grade = .*/grade = "text"/' -e 's/^filters = /source = "diagnoses"\nfilters = /' \
    -e 's/^pairs_per_question = .*/pairs_per_question = 1/' \
    -e 's/^batch_size = 8/batch_size = 32/' -e 's/^max_length = .*/max_length = 128/' \
    -e 's/^lr = .*/lr = 2e-3\nblend = 0.8/' -e '/^micro_batch_size/d' -e '/^gradient_checkpointing/d'
printf '\n[policy]\nbase_steps = 160 # 240 a round: the products are learned by heart\n' >>mine/skillloop.toml

phase "Kafka and a teacher"
start kafka python -m streams.testing.broker
start teacher python -m graphs.testing.server --port 0
servers=$(said kafka.log 'localhost:[0-9]*')
export SKILLLOOP_CONFIG=$work/mine/skillloop.toml SKILLLOOP_DIR=$work/run
export SKILLLOOP_LOG__KIND=kafka SKILLLOOP_LOG__KAFKA__BOOTSTRAP_SERVERS=$servers
SKILLLOOP_TEACHER__CHAT__BASE_URL=$(said teacher.log 'http://.*')
export SKILLLOOP_TEACHER__CHAT__BASE_URL
skillloop topics create

phase "a catalog of my labels"
skillloop stat --config mine/stat.toml --run mine/stat --until labels
skillloop doctor

phase "the workers, in any order"
for kind in monitor train curate deploy; do start "$kind" skillloop worker "$kind"; done
workers=("${pids[@]:2}")

phase "my users ask, my own tests judge: diagnoses go to Kafka"
python "$here/own_application.py" answer mine "$servers"
phase "waiting for version 2"
python "$here/own_application.py" wait "$servers" 2 "${WAIT_S:-900}" &
waiting=$!
while kill -0 $waiting 2>/dev/null; do
    for pid in "${workers[@]}"; do
        kill -0 "$pid" 2>/dev/null || { echo "a worker ended:"; kill $waiting; tail -n 20 ./*.log; exit 1; }
    done
    sleep 2
done
wait $waiting || { tail -n 20 ./*.log; exit 1; }
kill "${workers[@]}"

phase "what happened"
skillloop rounds list
skillloop rounds show "$(skillloop rounds list | grep -om1 'mathbot-r[0-9]*')"
skillloop status

phase "the promoted adapter, from MLflow, with plain PEFT"
MLFLOW_TRACKING_URI=sqlite:///$work/run/mlflow.db \
    python -m mlflow artifacts download --artifact-uri models:/mathbot@champion --dst-path adapter >/dev/null
python "$here/own_application.py" answer mine - adapter | tee after.txt
awk '$1 == "multiplication" && $2 < 0.3 * $4 || $1 != "multiplication" && $2 < 0.9 * $4 { bad = 1 } END { exit bad }' after.txt

phase "the demo in this environment, on a short stream"
cp "$checkout/tests/loop/small.toml" demo.toml
unset "${!SKILLLOOP_@}" # the loop's settings are not the demo's
skillloop demo --config demo.toml --dir demo >demo.log 2>&1 || { tail -n 20 demo.log; exit 1; }
tail -n 3 demo.log

phase "done: the student multiplies"
