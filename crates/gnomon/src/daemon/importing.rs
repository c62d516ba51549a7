//! Making a volume of a disk image, as a job.

use std::{ops::ControlFlow, sync::Arc, time::Instant};

use gnomon_volume::import::Import;

use super::{Daemon, jobs::Job, learned::Beginning};
use crate::api::{
    ApiError,
    types::{ImportVolume, JobView, Progress},
};

/// Checks what can be checked at once (name, image, space), then copies in the background. The volume's forecasts begin
/// as `begins` says.
pub fn start(daemon: &Arc<Daemon>, ask: ImportVolume, begins: Beginning) -> Result<JobView, ApiError> {
    let to = daemon.keeper.place_for(&ask.name)?;
    let import = Import { from: ask.file, format: None, to, size: ask.size.map(gnomon_terms::Bytes) };
    let keeper = Arc::clone(&daemon.keeper);
    let id = daemon.jobs.spawn_blocking("import", &ask.name.clone(), move |job| {
        let facts = import.check()?;
        let size = import.run(&mut meter(job, facts.data.0))?;
        let handle = keeper.take_over(&ask.name, import.to.clone(), &begins)?;
        let message = format!("volume {} of {size} made", ask.name);
        job.report(Progress { phase: "done".to_string(), message, ..job.view().progress });
        serde_json::to_value(keeper.view(&handle)).map_err(ApiError::internal)
    });
    Ok(daemon.jobs.get(&id.to_string())?.view())
}

/// Turns shares done into progress, and wishes to end into breaks.
fn meter(job: &Job, total: u64) -> impl FnMut(f64) -> ControlFlow<()> {
    let (job, begun) = (job.clone(), Instant::now());
    move |share| {
        let elapsed = begun.elapsed().as_secs_f64();
        let done = (total as f64 * share) as u64;
        let rate = if elapsed > 0.0 { done as f64 / elapsed } else { 0.0 };
        job.report(Progress {
            phase: "copying".to_string(),
            done_bytes: done,
            total_bytes: total,
            rate: rate as u64,
            eta_s: (rate > 0.0).then(|| (total - done) as f64 / rate),
            message: String::new(),
        });
        if job.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}
