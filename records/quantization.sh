#!/usr/bin/env bash
# Headline: files at least 100 times smaller within a point of a central teacher. One seed.
# Page: docs/results/students.md. Figures: quantization.csv.
set -eu

python -m fedpress.simulations.studies.compression fashion-mnist
