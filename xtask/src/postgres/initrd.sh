#!/bin/busybox sh
# The guest's first file system: loads the drivers of its disk and its card, and goes on from the disk.
for module in $(busybox cat /modules.list); do busybox insmod "$module"; done
busybox mount -t devtmpfs dev /dev
busybox mount -t ext4 /dev/vda /disk
exec busybox switch_root /disk /sbin/init
