//! `--dry-run`: what a move would be like.

use gnomon_terms::{Bytes, BytesPerSecond};

use super::{Context, Ended, output::facts};
use crate::api::types::{MoveOutlook, MoveRequest, RateOrigin, VolumeOutlook};

/// Asks the daemon at `path` and prints what it says; a move that would be refused ends as the real one would.
pub async fn run(path: &str, ask: &MoveRequest, context: &Context) -> Ended {
    let told: MoveOutlook = context.client.post(path, ask).await?;
    context.output.result(&told, words);
    match told.refused {
        None => Ok(()),
        Some(mut refused) => {
            refused.message = format!("would be refused because {}", refused.message);
            Err(refused.into())
        }
    }
}

fn words(told: &MoveOutlook) -> String {
    let mut pairs = vec![("to", told.to.clone())];
    pairs.extend(told.volumes.iter().map(|volume| ("volume", volume_words(volume))));
    if told.rate > 0 {
        let origin = match told.rate_is {
            RateOrigin::Given => "given",
            RateOrigin::Configured => "configured",
            RateOrigin::Measured => "measured for a moment",
        };
        pairs.push(("free there", Bytes(told.free).to_string()));
        pairs.push(("rate", format!("{} ({origin})", BytesPerSecond(told.rate))));
        pairs.push(("round trip", format!("{:.1} ms", told.round_trip_s * 1e3)));
        pairs.push(("priming", format!("at most {:.1} s", told.priming_s)));
        pairs.extend(told.volumes.iter().map(|volume| ("stall", stall_words(volume))));
    }
    facts(&pairs)
}

fn volume_words(volume: &VolumeOutlook) -> String {
    format!("{}: {}, {} allocated", volume.name, Bytes(volume.size), Bytes(volume.allocated))
}

fn stall_words(volume: &VolumeOutlook) -> String {
    match volume.reads_expected {
        0 => format!("{}: not known, nothing was read of it lately", volume.name),
        reads => format!(
            "{}: switched at once, {} of {reads} reads in 10 s would wait, {:.2} s in all",
            volume.name, volume.reads_stalling, volume.stall_s
        ),
    }
}
