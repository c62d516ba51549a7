//! One raw file by NBD on a unix socket, without a daemon: for benchmarks, tests and a quick look.

use std::{path::Path, sync::Arc};

use gnomon_terms::ResourceId;
use gnomon_volume::{
    disk::{FileDisk, Mode},
    front::nbd::{NbdAddress, NbdServer},
    serve::{Export, Exports},
};
use tokio::signal::unix::{SignalKind, signal};

use crate::api::ApiError;

/// Serves `file` on `socket` until SIGINT or SIGTERM. Prints the URI once it listens.
pub async fn run(file: &Path, socket: &Path, read_only: bool, name: &str) -> Result<(), ApiError> {
    let mode = if read_only { Mode::ReadOnly } else { Mode::ReadWrite };
    let exports = Exports::new();
    exports.add(Export {
        name: name.to_string(),
        description: file.display().to_string(),
        disk: Arc::new(FileDisk::open(file, None, mode)?),
        read_only,
        resource: ResourceId(1),
        tap: None,
    })?;
    let server = NbdServer::bind(NbdAddress::Unix(socket.to_path_buf()), exports)?;
    println!("nbd+unix:///{name}?socket={}", socket.display());
    until_told_to_stop().await?;
    tokio::task::spawn_blocking(move || server.stop()).await.map_err(ApiError::internal)
}

/// Returns when the process is asked to end.
pub async fn until_told_to_stop() -> Result<(), ApiError> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
