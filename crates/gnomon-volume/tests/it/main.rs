//! The volume's fronts against real clients: libnbd, QEMU, fio, a guest, and clients that misbehave.

mod clients;
mod frontend;
mod fuzz_nbd;
mod hostile;
mod import;
mod life;
mod protocol;
mod raw;
mod rig;
mod tls;
mod vhost_user;
