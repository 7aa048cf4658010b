#!/usr/bin/env bash
# Headline: 71 % of the workers' time goes into training, 80 rounds of fashion-mnist-100 on two quiet cores. No seeds: times.
# Page: docs/results/scale.md.
set -eu

fedpress simulate fashion-mnist-100 --set 'students={tiers: []}' --set evaluation.every=10 --set rounds=80
