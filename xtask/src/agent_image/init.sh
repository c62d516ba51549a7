#!/bin/busybox sh
# The first program of a guest that runs QEMU's agent. It counts, keeps the count on its disk, looks whether the disk has
# the one that it remembers, and says so together with the disk's first line, again and again.
export PATH=/usr/sbin:/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do
    insmod "$module"
done </modules.list

# Nobody makes /dev/virtio-ports here: the port is found by the name that its driver shows.
until name=$(grep -lx org.qemu.guest_agent.0 /sys/class/virtio-ports/*/name) && [ -b /dev/vda ]; do
    sleep 0.1
done 2>/dev/null
port=${name%/name}
qemu-ga --method=virtio-serial --path="/dev/${port##*/}" --statedir=/run &

count=0
while :; do
    count=$((count + 1))
    echo "$count" | dd of=/dev/vda bs=512 seek=1 conv=notrunc,fsync 2>/dev/null
    # What is read next is read from the disk.
    blockdev --flushbufs /dev/vda
    if [ "$(dd if=/dev/vda bs=512 skip=1 count=1 2>/dev/null | head -n 1)" = "$count" ]; then
        echo "beat $count of $(head -n 1 /dev/vda)"
    else
        echo "lost $count"
    fi
    sleep 0.1
done
