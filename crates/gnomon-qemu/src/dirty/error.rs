//! What can go wrong with tracking.

use std::{
    io,
    path::{Path, PathBuf},
};

use gnomon_terms::{ErrorKind, PageCount, PageNumber};

use super::{InjectError, TrackerTier};

/// Why pages could not be tracked.
#[derive(Debug, thiserror::Error)]
pub enum TrackError {
    /// This host has no such tier.
    #[error("this host cannot track by {tier}: {why}")]
    NoTier {
        /// Which.
        tier: TrackerTier,
        /// What is missing.
        why: String,
    },
    /// A file of this host could not be used.
    #[error("cannot {deed} {}: {source}", path.display())]
    File {
        /// What was tried.
        deed: &'static str,
        /// On what.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The process has ended.
    #[error("process {pid} has ended, and its pages with it")]
    Gone {
        /// Which process.
        pid: i32,
    },
    /// The process does not map all of the RAM.
    #[error("process {pid} maps {mapped} of the {} pages of this RAM: it is not its guest's", pages.0)]
    NotMapped {
        /// Which process.
        pid: i32,
        /// How many pages it maps.
        mapped: u64,
        /// How many there are.
        pages: PageCount,
    },
    /// The process maps the RAM elsewhere than it did.
    #[error("process {pid} has mapped its guest's RAM anew; start to track again")]
    Remapped {
        /// Which process.
        pid: i32,
    },
    /// The kernel forgets writes to such pages in some cases.
    #[error(
        "the RAM of process {pid} is mapped by large pages ({what}), which {tier} does not track; set \
         /sys/kernel/mm/transparent_hugepage/shmem_enabled to never and start the guest again"
    )]
    LargePages {
        /// Which process.
        pid: i32,
        /// By which tier.
        tier: TrackerTier,
        /// Which line of its `smaps` tells.
        what: String,
    },
    /// Pages may be swapped out, and a mark is lost with that.
    #[error("the RAM of process {pid} can be swapped out, which loses soft-dirty marks: use mem-lock=on or no swap")]
    Swappable {
        /// Which process.
        pid: i32,
    },
    /// Another tracker scans the same RAM; each would take the other's marks.
    #[error("the RAM of process {pid} is being tracked already; end that tracker first")]
    Taken {
        /// Which process.
        pid: i32,
    },
    /// The process could not be made to run our calls.
    #[error("cannot prepare process {pid} for tracking: {source}")]
    Inject {
        /// Which process.
        pid: i32,
        /// What went wrong.
        #[source]
        source: InjectError,
    },
    /// A call that was run within the process failed.
    #[error("process {pid} was refused {call}: {source}{}", advice(source))]
    Register {
        /// Which process.
        pid: i32,
        /// Which call.
        call: &'static str,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The kernel did not scan.
    #[error("cannot scan the pages of process {pid}: {source}")]
    Scan {
        /// Which process.
        pid: i32,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// Pages that the RAM does not have.
    #[error("{length} bytes from page {} on: the RAM has {} pages, and whole pages are read", start.0, pages.0)]
    OutOfRange {
        /// First page.
        start: PageNumber,
        /// How many bytes.
        length: usize,
        /// How many pages there are.
        pages: PageCount,
    },
}

impl TrackError {
    pub(super) fn file(deed: &'static str, path: &Path, source: io::Error) -> TrackError {
        TrackError::File { deed, path: path.to_path_buf(), source }
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            TrackError::NoTier { .. }
            | TrackError::NotMapped { .. }
            | TrackError::LargePages { .. }
            | TrackError::Swappable { .. }
            | TrackError::Taken { .. }
            | TrackError::OutOfRange { .. } => ErrorKind::Refused,
            TrackError::File { .. }
            | TrackError::Gone { .. }
            | TrackError::Remapped { .. }
            | TrackError::Register { .. }
            | TrackError::Scan { .. } => ErrorKind::Unavailable,
            TrackError::Inject { source, .. } => source.kind(),
        }
    }

    /// Whether no other tier can do better: the guest is not there, or somebody else has it.
    pub fn ends_the_search(&self) -> bool {
        matches!(self, TrackError::Gone { .. } | TrackError::NotMapped { .. } | TrackError::Taken { .. })
    }
}

/// What to do next, where the reason alone does not say.
fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::ResourceBusy => {
            "; it has a post-copy migration or a background snapshot of its own: wait for it"
        }
        io::ErrorKind::PermissionDenied => "; a seccomp filter (QEMU's -sandbox, a container's) may forbid it",
        _ => "",
    }
}
