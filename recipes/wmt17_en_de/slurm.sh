#!/usr/bin/env bash
# Runs train.sh on one or several nodes of 8 GPUs as a job of SLURM.
#
#   slurm.sh ARCH SEED [fairseq-train options...]
#
# Submit it from the project's folder, with sbatch's own options before its name. Arguments and
# environment are those of train.sh, but NGPUS comes from the job. An update stays the same on
# however many GPUs, as long as they divide its 524,288 tokens:
#
#   sbatch --nodes 2 --time 7-0 recipes/wmt17_en_de/slurm.sh \
#       transformer_reparam_deepnorm_18l 1
#
# A job that was preempted, or has lost a node, is queued again and goes on from its last checkpoint;
# one that has run out of time does if it is submitted again.
#
#SBATCH --job-name=wmt17_en_de
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=16
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.log
set -euo pipefail
# SLURM runs a copy of this file that lies elsewhere.
project=${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/../..}
[ -f "$project/scripts/recipe.sh" ] || {
    echo "wmt17_en_de: error: $project is not the project's folder; submit from there" >&2
    exit 1
}
# shellcheck source=scripts/recipe.sh
. "$project/scripts/recipe.sh"
recipe=wmt17_en_de

[ $# -ge 2 ] || { usage >&2 && exit 2; }
train_on_nodes "$@"
