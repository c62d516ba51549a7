//! `--dry-run`: what a move or an update would be like.

use gnomon_terms::{Bytes, BytesPerSecond};

use super::{Context, Ended, output::facts};
use crate::api::{
    ApiError,
    types::{
        ChangeView, ImpactView, IntervalView, MoveOutlook, MoveRequest, RateOrigin, UpdateOutlook, UpdateVm,
        VolumeOutlook,
    },
};

/// Asks the daemon at `path` and prints what it says; a move that would be refused ends as the real one would.
pub async fn run(path: &str, ask: &MoveRequest, context: &Context) -> Ended {
    let told: MoveOutlook = context.client.post(path, ask).await?;
    context.output.result(&told, words);
    verdict(told.refused)
}

/// The same for an update.
pub async fn of_update(path: &str, ask: &UpdateVm, context: &Context) -> Ended {
    let told: UpdateOutlook = context.client.post(path, ask).await?;
    context.output.result(&told, update_words);
    verdict(told.refused)
}

fn verdict(refused: Option<ApiError>) -> Ended {
    match refused {
        None => Ok(()),
        Some(mut refused) => {
            refused.message = format!("would be refused because {}", refused.message);
            Err(refused.into())
        }
    }
}

fn update_words(told: &UpdateOutlook) -> String {
    let mut pairs = vec![("from", told.from.clone()), ("to", told.to.clone()), ("before", told.earlier.to_string())];
    pairs.extend(told.earlier.changes.iter().map(|change| ("expected", change_words(change))));
    pairs.extend(told.history.iter().map(|impact| ("earlier", impact_words(impact))));
    facts(&pairs)
}

fn change_words(change: &ChangeView) -> String {
    let IntervalView { low, middle, high } = change.change;
    let number = |value: f64| match change.name.as_str() {
        "memory" => format!("{:+.1} MiB", value / f64::from(1 << 20)),
        "cpu" => format!("{value:+.3} s/s"),
        _ => format!("{value:+.1}/s"),
    };
    let sure = match change.from {
        1 => "as once before".to_string(),
        from => {
            format!("{} to {}, {:.0} % sure by {from} before", number(low), number(high), change.coverage * 100.0)
        }
    };
    format!("{} {} ({sure})", change.name, number(middle))
}

fn impact_words(impact: &ImpactView) -> String {
    let gap = impact.gap_ms.map(|gap| format!(", gap {gap:.1} ms")).unwrap_or_default();
    let ill: Vec<&str> = impact.series.iter().filter(|s| s.is_against).map(|s| s.name.as_str()).collect();
    let ill = if ill.is_empty() { String::new() } else { format!(", unlike before: {}", ill.join(", ")) };
    format!("{}: {} to {}, {}{gap}{ill}", impact.kind, impact.from, impact.to, impact.verdict)
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
        let memory = told.ram.as_ref().map(|ram| format!("{}, {ram}", Bytes(told.memory)));
        pairs.extend(memory.map(|memory| ("memory", memory)));
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
