//! `gnomon trace`: recordings of what a guest does with its disk.

use std::{path::PathBuf, time::Duration};

use clap::Subcommand;
use gnomon_forecast::trace::Format;
use gnomon_terms::Bytes;

use super::{Context, Ended, output::facts};
use crate::trace::{self, Info};

/// `gnomon trace`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Record a volume's accesses until the time is over or ctrl-c
    #[command(after_help = "Examples:\n  gnomon trace record root --out web.csv.zst --for 60s\n  \
                            gnomon trace record root --out web.csv")]
    Record {
        /// Which volume
        volume: String,
        /// The file to write; compressed when it ends in .zst
        #[arg(long)]
        out: PathBuf,
        /// How long: 90s, 5m, 2h
        #[arg(long = "for", value_name = "TIME", value_parser = trace::parse_duration)]
        time: Option<Duration>,
    },
    /// Say what a recording holds
    #[command(after_help = "Examples:\n  gnomon trace info web.csv.zst\n  gnomon trace info disk.vscsi --json")]
    Info {
        /// A recording: its name ends in its format, and in .zst if it is compressed
        file: PathBuf,
        /// Its format, if its name does not say it: csv, msr, vscsi, lis, blkparse, blktrace, iolog, nbdkit
        #[arg(long, value_parser = trace::parse_format)]
        format: Option<Format>,
    },
    /// Rewrite any recording as CSV: vscsiStats, ARC, MSR, blkparse, blktrace, fio's iolog, nbdkit's log
    #[command(after_help = "Examples:\n  gnomon trace convert disk.vscsi --out disk.csv.zst\n  \
                            gnomon trace convert disk.log --format nbdkit --out disk.csv.zst")]
    Convert {
        /// A recording: its name ends in its format, and in .zst if it is compressed
        file: PathBuf,
        /// Its format, if its name does not say it: csv, msr, vscsi, lis, blkparse, blktrace, iolog, nbdkit
        #[arg(long, value_parser = trace::parse_format)]
        format: Option<Format>,
        /// The file to write; compressed when it ends in .zst
        #[arg(long)]
        out: PathBuf,
    },
}

pub(super) async fn run(command: Command, context: &Context) -> Ended {
    match command {
        Command::Record { volume, out, time } => {
            let info = trace::record(&context.client, &volume, &out, time).await?;
            context.output.result(&info, words);
        }
        Command::Info { file, format } => context.output.result(&trace::info(&file, format)?, words),
        Command::Convert { file, format, out } => {
            context.output.result(&trace::convert(&file, format, &out)?, words);
        }
    }
    Ok(())
}

fn words(info: &Info) -> String {
    facts(&[
        ("trace", info.trace.clone()),
        ("format", info.format.clone()),
        ("accesses", info.accesses.to_string()),
        ("reads", format!("{}, {}", info.reads, Bytes(info.read_bytes))),
        ("writes", format!("{}, {}", info.writes, Bytes(info.written_bytes))),
        ("discards", info.discards.to_string()),
        ("touched", Bytes(info.touched_bytes).to_string()),
        ("end", Bytes(info.end_bytes).to_string()),
        ("time", format!("{:.1} s", info.seconds)),
        ("lost", info.lost.map(|lost| lost.to_string()).unwrap_or_default()),
    ])
}
