//! Unix sockets in the file system.

use std::{
    fs, io,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
};

/// Listens at `path`. A socket file that nobody listens at, left by a process that was killed, is replaced.
pub(super) fn listen(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(path) => {
            fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    }
}

fn is_stale(path: &Path) -> bool {
    matches!(UnixStream::connect(path), Err(error) if error.kind() == io::ErrorKind::ConnectionRefused)
}
