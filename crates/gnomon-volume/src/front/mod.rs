//! Fronts: how a guest's hypervisor reaches a disk. Each decodes requests, has them served, and replies.

pub mod nbd;
