//! Fronts: how a guest's hypervisor reaches a disk. Each decodes requests, has them served, and replies.
//!
//! [`nbd`] speaks the NBD protocol over sockets; [`vhost_user`] shares the guest's memory and its virtio queues.

mod helpers;
pub mod nbd;
mod socket;
pub mod vhost_user;
