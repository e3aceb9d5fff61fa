#!/usr/bin/env bash
# Runs train.sh on one or several nodes of 8 GPUs as a job of SLURM.
#
#   slurm.sh ARCH SEED LR WEIGHT_DECAY [fairseq-train options...]
#
# Submit it from the project's folder, with sbatch's own options before its name. Arguments and
# environment are those of train.sh, but NGPUS comes from the job. An update stays the same on
# however many GPUs, for which two nodes need MAX_TOKENS=4608:
#
#   MAX_TOKENS=4608 sbatch --nodes 2 --time 2-0 recipes/wikitext103/slurm.sh \
#       transformer_lm_reparam_noln_wiki103_16l 1 2 1e-4
#
# A job that was preempted, or has lost a node, is queued again and goes on from its last checkpoint;
# one that has run out of time does if it is submitted again.
#
#SBATCH --job-name=wikitext103
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
    echo "wikitext103: error: $project is not the project's folder; submit from there" >&2
    exit 1
}
# shellcheck source=scripts/recipe.sh
. "$project/scripts/recipe.sh"
recipe=wikitext103

[ $# -ge 4 ] || { usage >&2 && exit 2; }
train_on_nodes "$@"
