# The network of two hosts and a client: a bridge here, where the client is, and a namespace for each host, with a bridge
# of its own that guests' taps are ports of. All of it goes with the last process in it; even the names, for what `ip`
# keeps of them is in a file system of this mount namespace.
set -e
mkdir -p /run/netns
mount -t tmpfs none /run/netns
ip link set lo up
ip link add net0 address 02:67:6e:00:00:01 type bridge
ip address add "$CLIENT/24" dev net0
ip link set net0 up
host() {
  ip netns add "$1"
  ip link add "to-$1" type veth peer name uplink netns "$1"
  ip link set "to-$1" master net0 up
  ip -n "$1" link set lo up
  # A bridge without an address takes the lowest of its ports, and so another one when a guest arrives.
  ip -n "$1" link add br0 address "$3" type bridge
  ip -n "$1" link set uplink master br0 up
  ip -n "$1" address add "$2/24" dev br0
  ip -n "$1" link set br0 up
}
host a "$HOST_A" 02:67:6e:00:00:02
host b "$HOST_B" 02:67:6e:00:00:03
exec "$@"
