//! `gnomon doctor`: what this host can do.

use std::path::PathBuf;

use super::{Context, Ended};
use crate::{config::Config, doctor};

/// `gnomon doctor`
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  gnomon doctor\n  gnomon doctor --config /etc/gnomon.toml --json")]
pub struct Args {
    /// The daemon's configuration, to look at its folders and certificates
    #[arg(long)]
    config: Option<PathBuf>,
}

pub(super) async fn run(args: Args, context: &Context) -> Ended {
    let config = Config::load(args.config.as_deref())?;
    let report = tokio::task::spawn_blocking(move || doctor::examine(&config)).await.map_err(anyhow::Error::from)?;
    context.output.result(&report, doctor::words);
    Ok(())
}
