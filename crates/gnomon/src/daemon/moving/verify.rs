//! Verifying: what a volume's bytes are, and whether both copies of a move agree.

use std::sync::Arc;

use gnomon_terms::{Bytes, Extent};
use gnomon_volume::disk::Disk;
use serde_json::json;

use crate::{
    api::{
        ApiError,
        types::{JobView, Progress},
    },
    daemon::{Daemon, jobs::Job, keeper::VolumeHandle},
};

/// Bytes read at once.
const CHUNK: u64 = 1 << 20;

/// Reads a whole volume and tells its BLAKE3 digest.
pub fn start(daemon: &Arc<Daemon>, name: &str) -> Result<JobView, ApiError> {
    let handle = daemon.keeper.get(name)?;
    let id = daemon.jobs.spawn_blocking("verify", name, move |job| digest(&handle, job));
    Ok(daemon.jobs.get(&id.to_string())?.view())
}

fn digest(handle: &VolumeHandle, job: &Job) -> Result<serde_json::Value, ApiError> {
    let disk = handle.volume.disk();
    let size = disk.size().0;
    let mut hasher = blake3::Hasher::new();
    let mut bytes = vec![0; CHUNK as usize];
    let mut at = 0;
    while at < size {
        if job.is_cancelled() {
            return Err(ApiError::refused("cancelled"));
        }
        let len = CHUNK.min(size - at);
        let part = &mut bytes[..len as usize];
        disk.read_at(part, at)?;
        hasher.update(part);
        at += len;
        job.report(Progress {
            phase: "reading".to_string(),
            done_bytes: at,
            total_bytes: size,
            ..Progress::default()
        });
    }
    let digest = hasher.finalize().to_hex().to_string();
    let message = format!("{} of {}: blake3 {digest}", handle.record().name, Bytes(size));
    job.report(Progress { phase: "done".to_string(), message, ..job.view().progress });
    Ok(json!({ "blake3": digest, "bytes": size, "whole": Extent::touching(0, size).len.0 }))
}
