#!/bin/sh
# Installs the Debian packages of `make test-cluster` where one is missing: namespaces, sshd, rsync, PostgreSQL.
set -eu
for command in ip ssh /usr/sbin/sshd rsync unshare nsenter; do
    command -v "$command" >/dev/null 2>&1 || missing=1
done
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing=1
[ -z "${missing:-}" ] && exit 0
[ "$(id -u)" = 0 ] || { echo "make test-cluster makes network namespaces and installs packages: run it as root" >&2; exit 2; }
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends iproute2 util-linux openssh-server openssh-client rsync postgresql >/dev/null
