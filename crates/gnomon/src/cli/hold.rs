//! `gnomon hold-memory`: the process that keeps staged memory over a restart of the daemon, which starts it.

use std::{
    io::{Write, stdout},
    path::PathBuf,
};

use gnomon_memory::{Patience, hold};

use super::{Ended, Failure};
use crate::api::ApiError;

/// `gnomon hold-memory`
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  gnomon hold-memory --at /run/gnomon/memory.sock")]
pub struct Args {
    /// Where it is asked
    #[arg(long, value_name = "SOCKET")]
    at: PathBuf,
}

pub(super) fn run(args: Args) -> Ended {
    // A byte says that it listens; who started it may be gone by then.
    let mut ready = || drop(stdout().write_all(b"+").and_then(|()| stdout().flush()));
    hold(&args.at, Patience::default(), &mut ready).map_err(|error| Failure::from(ApiError::of(error.kind(), &error)))
}
