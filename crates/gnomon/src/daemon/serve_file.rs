//! One raw file by NBD or vhost-user-blk on a unix socket, without a daemon: for benchmarks, tests and a quick look.

use std::{path::Path, sync::Arc};

use gnomon_terms::ResourceId;
use gnomon_volume::{
    disk::{FileDisk, Mode},
    front::{
        nbd::{NbdAddress, NbdServer},
        vhost_user::VhostUserServer,
    },
    serve::{Export, Exports},
};
use tokio::signal::unix::{SignalKind, signal};

use crate::api::{ApiError, types::Front};

/// Serves `file` on `socket` until SIGINT or SIGTERM. Prints where once it listens.
pub async fn run(file: &Path, socket: &Path, front: Front, read_only: bool, name: &str) -> Result<(), ApiError> {
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
    let stop: Box<dyn FnOnce() + Send> = match front {
        Front::Nbd => {
            let server = NbdServer::bind(NbdAddress::Unix(socket.to_path_buf()), exports)?;
            println!("nbd+unix:///{name}?socket={}", socket.display());
            Box::new(move || server.stop())
        }
        Front::VhostUser => {
            let server = VhostUserServer::bind(socket, exports, name)?;
            println!("vhost-user-blk at {}", socket.display());
            Box::new(move || server.stop())
        }
    };
    until_told_to_stop().await?;
    tokio::task::spawn_blocking(stop).await.map_err(ApiError::internal)
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
