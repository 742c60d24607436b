#!/usr/bin/env bash
# Everything that only a GPU can show, in one call of under ten minutes: the trial of the CUDA engine in each precision,
# agreement of the precisions, seconds and memory for all four networks against dense, of two of them compiled too, some
# hundred iterations of training, and which of the goals are reached. Where the trial fails, nothing is measured.
#
#     benchmarks/gpu_suite.sh [DATA] [OUTPUT]      DATA: folder with CIFAR-10, noise and digits without it
set -uo pipefail
cd "$(dirname "$0")/.."
data=${1:-} output=${2:-gpu_results}
rm -f "$output"/*.json  # of an earlier call
mkdir -p "$output"
path=(); [ -n "$data" ] && path=(--path "$data")
python=${PYTHON:-python}

deadline=580  # seconds for all parts together; SECONDS counts them

step() {  # NAME LIMIT COMMAND...: run a part, keep what it prints, go on if it fails or takes longer
    local name=$1 limit=$2 left=$((deadline - SECONDS)); shift 2
    ((left < limit)) && limit=$left
    echo "== $name"
    if ((limit < 10)); then
        echo "left out: no time" | tee "$output/$name.txt"
        return
    fi
    timeout --kill-after 5 "$limit" "$@" 2>&1 | tee "$output/$name.txt" | tail -n 12
}

speed() {  # MODEL LIMIT BATCH ENGINES...
    local model=$1 limit=$2 batch=$3; shift 3
    local images=(); [[ "$model" == *netf && "$model" != convnetf ]] && images=("${path[@]}")
    step "$model" "$limit" "$python" -m benchmarks.speed --model "$model" --batch "$batch" --device cuda --repeats 2 \
        --engines "$@" "${images[@]}" --json "$output/$model.json"
}

precisions=(fp32 tf32 bf16x2 bf16)
trials=()
for precision in "${precisions[@]}"; do  # side by side, as compilers take most of their time
    step "trial_$precision" 120 "$python" -m modules.engines.trial "cuda:$precision" & trials+=($!)
done
for trial in "${trials[@]}"; do wait "$trial" || exit 1; done
step tests 100 "$python" -m pytest -q -n 8 -p no:cacheprovider tests/test_cuda_engine.py
step precision 120 "$python" -m benchmarks.speed --batch 128 --device cuda --float32 --repeats 1 \
    --engines "${precisions[@]/#/cuda:}" dense "${path[@]}"  # compiles what the next part times
speed alexnetf 90 128 dense dense:compiled "${precisions[@]/#/cuda:}" cuda:bf16:whole
speed lenet 40 128 dense "${precisions[@]/#/cuda:}"
speed cifarnetf 90 128 dense dense:compiled cuda:tf32 cuda:bf16
for batch in 128 64 32; do  # the largest that fits
    speed convnetf 60 "$batch" dense cuda:tf32 cuda:bf16
    [ -s "$output/convnetf.json" ] && break
done
for precision in "${precisions[@]}"; do  # short training curves
    step "digits_$precision" 30 "$python" mnist_lenet.py -d digits --epochs 4 --manualSeed 1 --precision "$precision" \
        -c "$output/digits_$precision"
done
[ -n "$data" ] && step training 100 "$python" cifar_alexnetf.py "${path[@]}" --max-iters 391 --manualSeed 1 \
    -c "$output/alexnetf"
echo "== goals"; grep -hE '^(reached|MISSED) ' "$output/alexnetf.txt" "$output/cifarnetf.txt" || echo "not measured"
