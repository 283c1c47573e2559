#!/bin/bash
# Slurm: a sweep on the nodes of one allocation, from a folder that all nodes see, with prolu-tune installed in it (make setup).
#   sbatch cluster/slurm.sh search_spaces/exp3.yaml     the same again goes on after the time limit
#   prolu-tune pareto exp3                              on the login node, in the same folder
#SBATCH --job-name=prolu
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-task=1
#SBATCH --time=12:00:00
#SBATCH --signal=B:INT@120
# (the last line: two minutes before the limit the sweep is asked to save and stop)
set -euo pipefail
export PATH=$PWD/.venv/bin:$PATH RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH=$HOME/.ray/prolu_slurm_$SLURM_JOB_ID # other users of the nodes have no token
(umask 077; mkdir -p "$HOME/.ray"; openssl rand -hex 32 >"$RAY_AUTH_TOKEN_PATH")
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"' EXIT

# --temp-dir of the job's own, so that jobs which share a node do not meet; short, because a socket's path must be.
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))
start="ray start --block --disable-usage-stats --num-cpus=$SLURM_CPUS_PER_TASK"
srun --nodes=1 --ntasks=1 --nodelist="$head" \
    $start --head --port="$port" --include-dashboard=false --temp-dir="/tmp/prolu_$SLURM_JOB_ID" &
sleep 20
if ((SLURM_NNODES > 1)); then
    srun --nodes=$((SLURM_NNODES - 1)) --ntasks=$((SLURM_NNODES - 1)) --exclude="$head" $start --address="$head:$port" &
    sleep 20
fi

# This script runs on the first node, where the driver joins.
prolu-tune run "$@" --address "$head:$port" --storage "$PWD/prolu_runs" &
driver=$!
trap 'kill -TERM "$driver"' INT TERM
code=0
wait "$driver" || code=$?
wait "$driver" 2>/dev/null || code=$? # the first one ends when the signal comes, this one when all is saved
exit "$code"
