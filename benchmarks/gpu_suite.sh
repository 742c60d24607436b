#!/usr/bin/env bash
# Everything that only a GPU can show, in one call of under ten minutes: spikes against the dense engine, agreement of
# the precisions, milliseconds and memory for all four networks, and some hundred iterations of training.
#
#     benchmarks/gpu_suite.sh [DATA] [OUTPUT]      DATA: folder with CIFAR-10, noise and digits without it
set -uo pipefail
cd "$(dirname "$0")/.."
data=${1:-} output=${2:-gpu_results}
mkdir -p "$output"
path=(); [ -n "$data" ] && path=(--path "$data")
python=${PYTHON:-python}

step() {  # NAME SECONDS COMMAND...: run a part, keep what it prints, go on if it fails
    local name=$1 limit=$2; shift 2
    echo "== $name"
    timeout "$limit" "$@" 2>&1 | tee "$output/$name.txt" | tail -n 12
}

step tests 120 "$python" -m pytest -q -p no:cacheprovider tests/test_cuda_engine.py
step precision 90 "$python" -m benchmarks.precision --batch 128 "${path[@]}"
engines=(dense cuda:fp32 cuda:tf32 cuda:bf16x2 cuda:bf16)
step alexnetf 90 "$python" -m benchmarks.speed --model alexnetf --batch 128 --device cuda --engines "${engines[@]}" \
    "${path[@]}" --json "$output/alexnetf.json"
step cifarnetf 90 "$python" -m benchmarks.speed --model cifarnetf --batch 128 --device cuda --engines "${engines[@]}" \
    "${path[@]}" --json "$output/cifarnetf.json"
step lenet 40 "$python" -m benchmarks.speed --model lenet --batch 128 --device cuda --engines "${engines[@]}" \
    --json "$output/lenet.json"
for batch in 128 64 32; do  # the largest that fits
    step convnetf 60 "$python" -m benchmarks.speed --model convnetf --batch "$batch" --device cuda --repeats 1 \
        --engines dense cuda:tf32 cuda:bf16 --json "$output/convnetf.json"
    [ -s "$output/convnetf.json" ] && break
done
step digits 60 "$python" mnist_lenet.py -d digits --epochs 4 --manualSeed 1 -c "$output/digits"
if [ -n "$data" ]; then
    step training 100 "$python" cifar_alexnetf.py "${path[@]}" --max-iters 391 --manualSeed 1 -c "$output/alexnetf"
fi
