//! Long work as a resource: each job has a state anybody can look at or follow, and a wish to be cancelled.
//!
//! ```text
//! running ──finish(Ok)──▶ done
//!    │──────finish(Err)─▶ failed
//!    └──────finish(Cancelled)─▶ cancelled
//! ```

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::api::{
    ApiError,
    types::{JobState, JobView, Progress},
};

/// Jobs that are over are kept for whoever comes to look, but not without bound.
const KEPT: usize = 256;

/// Names a job. The first number counts the daemon's starts, so an id is never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId {
    start: u64,
    number: u64,
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "j{}-{}", self.start, self.number)
    }
}

/// All jobs of this run of the daemon.
pub struct Jobs {
    start: u64,
    next: AtomicU64,
    all: Mutex<BTreeMap<JobId, Job>>,
}

/// A job, as its worker holds it. Clones are the same job.
#[derive(Clone)]
pub struct Job {
    id: JobId,
    view: watch::Sender<JobView>,
    cancel: Arc<AtomicBool>,
    wake: Arc<tokio::sync::Notify>,
}

impl Jobs {
    /// No jobs yet. `start` counts the daemon's starts.
    pub fn new(start: u64) -> Jobs {
        Jobs { start, next: AtomicU64::new(1), all: Mutex::default() }
    }

    /// A new, running job.
    pub fn begin(&self, kind: &str, subject: &str) -> Job {
        let id = JobId { start: self.start, number: self.next.fetch_add(1, Ordering::Relaxed) };
        let (view, _) = watch::channel(JobView {
            id: id.to_string(),
            kind: kind.to_string(),
            subject: subject.to_string(),
            state: JobState::Running,
            progress: Progress { phase: "starting".to_string(), ..Progress::default() },
            error: None,
            result: None,
        });
        let job = Job { id, view, cancel: Arc::default(), wake: Arc::default() };
        let mut all = self.all.lock();
        all.insert(id, job.clone());
        forget_oldest(&mut all);
        job
    }

    /// Begins a job whose work blocks, on a thread of its own. What `work` returns ends the job.
    pub fn spawn_blocking<F>(&self, kind: &str, subject: &str, work: F) -> JobId
    where
        F: FnOnce(&Job) -> Result<serde_json::Value, ApiError> + Send + 'static,
    {
        let job = self.begin(kind, subject);
        let id = job.id;
        tokio::task::spawn_blocking(move || {
            let ended = work(&job);
            job.finish(ended);
        });
        id
    }

    /// Counts the daemon's starts.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// How many jobs there have been in this run.
    pub fn count(&self) -> u64 {
        self.next.load(Ordering::Relaxed) - 1
    }

    /// Every job, oldest first.
    pub fn list(&self) -> Vec<JobView> {
        self.all.lock().values().map(Job::view).collect()
    }

    /// The job printed as `id`.
    pub fn get(&self, id: &str) -> Result<Job, ApiError> {
        let all = self.all.lock();
        let found = all.iter().find(|(known, _)| known.to_string() == id);
        found.map(|(_, job)| job.clone()).ok_or_else(|| {
            ApiError::new(crate::api::Kind::NotFound, format!("there is no job '{id}'"))
                .then("jobs are forgotten when the daemon restarts; look at the volume or VM itself")
        })
    }
}

fn forget_oldest(all: &mut BTreeMap<JobId, Job>) {
    while all.len() > KEPT {
        let Some(oldest) = all.iter().find(|(_, job)| job.view().state.is_over()).map(|(id, _)| *id) else { return };
        all.remove(&oldest);
    }
}

impl Job {
    /// Its id.
    pub fn id(&self) -> JobId {
        self.id
    }

    /// How it looks now.
    pub fn view(&self) -> JobView {
        self.view.borrow().clone()
    }

    /// Follows it: the receiver sees the newest state, not necessarily each.
    pub fn follow(&self) -> watch::Receiver<JobView> {
        self.view.subscribe()
    }

    /// Tells how far it is.
    pub fn report(&self, progress: Progress) {
        self.view.send_modify(|view| view.progress = progress);
    }

    /// Tells what has come of it so far.
    pub fn tell(&self, result: serde_json::Value) {
        self.view.send_modify(|view| view.result = Some(result));
    }

    /// Wishes it to end early. Its worker decides whether it still can.
    pub fn cancel(&self) {
        self.cancel.store(true, Ordering::Release);
        self.wake.notify_waiters();
    }

    /// Whether somebody wishes it to end early.
    pub fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Acquire)
    }

    /// Waits until somebody wishes it to end early.
    pub async fn cancelled(&self) {
        let wake = self.wake.notified();
        tokio::pin!(wake);
        wake.as_mut().enable();
        if !self.is_cancelled() {
            wake.await;
        }
    }

    /// Ends it. A job that was wished to end and did not succeed counts as cancelled.
    pub fn finish(&self, ended: Result<serde_json::Value, ApiError>) {
        let cancelled = self.is_cancelled();
        self.view.send_modify(|view| match ended {
            Ok(result) => {
                view.state = JobState::Done;
                view.result = Some(result);
            }
            Err(error) => {
                view.state = if cancelled { JobState::Cancelled } else { JobState::Failed };
                view.error = Some(error);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_ends_once_and_says_how() {
        let jobs = Jobs::new(3);
        let job = jobs.begin("import", "v");
        assert_eq!(job.id().to_string(), "j3-1");
        assert!(!jobs.get("j3-1").expect("known").view().state.is_over());
        job.finish(Err(ApiError::refused("no")));
        assert_eq!(jobs.get("j3-1").expect("known").view().state, JobState::Failed);
        assert!(jobs.get("j2-1").is_err());
    }

    #[test]
    fn a_wish_to_cancel_is_seen_and_a_late_one_changes_nothing() {
        let jobs = Jobs::new(1);
        let (early, late) = (jobs.begin("move", "a"), jobs.begin("move", "b"));
        early.cancel();
        assert!(early.is_cancelled());
        early.finish(Err(ApiError::refused("cancelled")));
        late.cancel();
        late.finish(Ok(serde_json::Value::Null));
        assert_eq!(early.view().state, JobState::Cancelled);
        assert_eq!(late.view().state, JobState::Done);
    }

    #[test]
    fn only_jobs_that_are_over_are_forgotten() {
        let jobs = Jobs::new(1);
        let running = jobs.begin("move", "a");
        for _ in 0..KEPT * 2 {
            jobs.begin("verify", "b").finish(Ok(serde_json::Value::Null));
        }
        assert_eq!(jobs.list().len(), KEPT);
        assert!(jobs.get(&running.id().to_string()).is_ok());
    }
}
