#!/usr/bin/env bash
# Headline: text, STC and fedpress against dense FedAvg on a natural split: 33x and 43x fewer bytes for 1.6 and 1.7 points.
# Page: docs/results/benchmarks.md. Means of three seeds: methods-text.csv.
set -eu

fedpress bench communication text
