#!/usr/bin/env bash
# Headline: adapters of MiniLM on Bible verses, fedpress against dense FedAvg on the same adapters.
# Page: docs/results/minilm-verses.md. Seeds: minilm-verses.csv.
set -eu

fedpress bench paired minilm-verses --seeds 1-3 --baseline server.ema_decay=0.8
fedpress simulate minilm-verses --set clients=66 --set partition.kind=natural      # a client for each book
