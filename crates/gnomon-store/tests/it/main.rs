//! One suite for every store, what a crash leaves, and a cluster that loses members.

#[cfg(feature = "etcd")]
mod cluster;
mod conformance;
mod crash;
mod embedded;
#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "etcd")]
mod guarding;
#[cfg(feature = "etcd")]
mod tls;
#[cfg(feature = "etcd")]
mod wire;
