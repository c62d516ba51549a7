#!/bin/busybox sh
# The first program of a machine with two NUMA nodes: runs the tests that its kernel line names, says how they ended, and
# switches the machine off.
export PATH=/bin HOME=/tmp
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm
mount -t tmpfs tmpfs /dev/shm

for word in $(cat /proc/cmdline); do
    case $word in gn.test=*) filters="$filters ${word#gn.test=}" ;; esac
done
# shellcheck disable=SC2086 # Each filter is a word of its own.
/tests --test-threads=1 --nocapture $filters 2>&1
echo "gnomon: the tests ended with $?"
poweroff -f
