#!/usr/bin/env bash
# Headline: Flower's niid_bench repeated, and fedpress in its set-up with 1/45 of the bytes. One seed.
# Page: docs/results/benchmarks.md. Figures: niid-bench.csv.
set -eu

fedpress bench communication niid-bench
fedpress simulate fashion-mnist-100 --set 'task={name: "niid_draw:Drawn", folder: docs/examples, labels: 2}' \
    --set clients=10 --set rounds=50 --set sampling.clients_per_round=10 \
    --set partition.kind=natural --set partition.sizes=natural --set name=fashion-mnist-niid \
    --set 'training={epochs: 10, batch_size: 64, learning_rate: 0.01, momentum: 0.9, weight_decay: 1.0e-5}' \
    --set 'server={learning_rate: 1.0}' --set 'encoder={kind: dense, values: float32, feedback: none}' \
    --set downlink=null --set 'students={tiers: []}'
