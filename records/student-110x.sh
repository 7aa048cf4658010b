#!/usr/bin/env bash
# Headline: from a federated teacher, a student 110 times smaller than the float32 model for 0.83 points, and the teacher's own
# architecture 49 times smaller for 0.74. One seed. Page: docs/results/students.md. Figures: student-110x.csv.
set -eu

fedpress simulate fashion-mnist-100 --set rounds=200 --set training.precision=bfloat16 --set evaluation.every=50 --out runs/student-110x \
    --set 'students={tiers: [{name: sensor, parameters: 48564}], distill: {epochs: 40}, quantize: {bits: 4, scale: least-squares}}'
fedpress students runs/student-110x --set 'students={tiers: [{name: whole, parameters: 582026}], distill: {epochs: 20},
    quantize: {bits: 4, scale: least-squares, sparsity: 0.92, qat_epochs: 20}}'
