#!/bin/sh
# The guest's first program on its disk: the network, then the database. The kernel hands GNOMON_ADDRESS over from its
# command line.
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
busybox mount -t tmpfs tmpfs /run
busybox ip link set lo up
busybox ip address add "$GNOMON_ADDRESS" dev eth0
busybox ip link set eth0 up
chroot --userspec=postgres:postgres / "$(echo /usr/lib/postgresql/*/bin/postgres)" -D /var/lib/postgresql/data
sync
busybox poweroff -f
