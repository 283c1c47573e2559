#!/bin/sh
# One machine: runs inside its own network, mount, pid and host name namespaces. Arguments: its folder, name, address, role.
# Of the file system it has its own /root, /tmp, /var/tmp, /run and /dev/shm; the rest is the image all machines share.
set -eu
folder=$1 name=$2 address=$3 role=$4
lab=$(dirname "$folder")
hostname "$name"
mount --make-rprivate /
while ! ip link show "$name" >/dev/null 2>&1; do sleep 0.05; done
ip link set lo up
ip addr add "$address/24" dev "$name"
ip link set "$name" up
ip route add default via 10.9.0.254
mkdir -p "$folder/root/.ssh" "$folder/root/.ray" "$folder/tmp" "$folder/var_tmp"
chmod 1777 "$folder/tmp" "$folder/var_tmp"
# `ray up` runs everything in a login shell, which sets a PATH of its own.
echo "export PATH=$PATH RAY_USAGE_STATS_ENABLED=0 DO_NOT_TRACK=true MLFLOW_DISABLE_TELEMETRY=true HF_HUB_OFFLINE=1" >"$folder/root/.bashrc"
# An interpreter that lives in the home folder belongs to the image.
case "$PYTHON_HOME" in
"$HOME"/*)
    mkdir -p "$folder/root/${PYTHON_HOME#"$HOME"/}"
    mount --bind "$PYTHON_HOME" "$folder/root/${PYTHON_HOME#"$HOME"/}"
    ;;
esac
ln -sfn "$VIRTUAL_ENV" "$folder/root/prolu-env" # what the cluster file's setup_commands would make
mount --rbind "$folder/root" "$HOME"
mount --bind "$folder/tmp" /tmp
mount --bind "$folder/var_tmp" /var/tmp
mount -t tmpfs tmpfs /run
mount -t tmpfs -o size=1g tmpfs /dev/shm
mkdir -p /run/sshd
if [ "$role" = laptop ]; then
    umount "$lab/shared" 2>/dev/null || true
    mount -t tmpfs -o ro,size=4k tmpfs "$lab/shared"
    touch "$folder/ready"
    exec sleep infinity
fi
touch "$folder/ready"
exec /usr/sbin/sshd -D -e -f "$lab/sshd_config" -h "$lab/host_key" 2>"$folder/sshd.log"
