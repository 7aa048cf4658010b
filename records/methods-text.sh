#!/usr/bin/env bash
# Headline: text, STC and fedpress against dense FedAvg on a natural split: 37x and 63x fewer bytes for 1.7 and 2.1 points.
# Page: docs/results/benchmarks.md. Means of three seeds: methods-text.csv; single seeds were not recorded.
set -eu

fedpress bench communication text
