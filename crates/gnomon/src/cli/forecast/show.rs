//! `gnomon forecast show`: what is expected of a volume, why, and how good it was.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use gnomon_terms::Bytes;

use crate::{
    api::{
        ApiError, Kind,
        client::Client,
        types::{ExpectedView, ExpertView, FirstView, ForecastView, GapView, MovingView, ReadView, TOP},
    },
    cli::{
        Context, Ended,
        output::{facts, table},
    },
};

use super::plot;

/// `gnomon forecast show`
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// A VM, of which each volume is shown; or a volume
    name: String,
    /// Entries of each list, up to 256
    #[arg(long, default_value_t = TOP.0, value_parser = clap::value_parser!(u32).range(1..=i64::from(TOP.1)))]
    top: u32,
    /// The name is a volume's, also if a VM has it too
    #[arg(long)]
    volume: bool,
    /// Draw calibration, and the gap over time of the move that is on or was the last, as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

pub async fn run(args: &Args, context: &Context) -> Ended {
    let views = ask(args, &context.client).await?;
    if let Some(file) = &args.plot {
        std::fs::write(file, plot::shown(&views)).map_err(ApiError::from)?;
    }
    context.output.result(&views, |views| views.iter().map(words).collect::<Vec<_>>().join("\n\n\n"));
    Ok(())
}

async fn ask(args: &Args, client: &Client) -> Result<Vec<ForecastView>, ApiError> {
    let path = |what: &str| format!("/v1/{what}/{}/forecast?top={}", args.name, args.top);
    if !args.volume {
        match client.get(&path("vms")).await {
            Err(error) if error.kind == Kind::NotFound => {}
            told => return told,
        }
    }
    match client.get(&path("volumes")).await {
        Err(error) if error.kind == Kind::NotFound && !args.volume => Err(unknown(&args.name)),
        told => Ok(vec![told?]),
    }
}

fn unknown(name: &str) -> ApiError {
    let message =
        format!("there is no VM and no volume named '{name}'; forecasts of groups and namespaces do not exist yet");
    ApiError::new(Kind::NotFound, message).then("`gnomon vm ls` and `gnomon volume ls` list what there is")
}

/// A volume's forecast for people.
fn words(view: &ForecastView) -> String {
    let mut head = vec![("volume", format!("{} ({})", view.volume, view.role)), ("learned from", seen(view))];
    head.extend(view.like.as_ref().filter(|_| view.before).map(|like| ("began with", began_with(like))));
    let mut parts = vec![facts(&head)];
    parts.extend(view.ask_node.as_ref().map(|node| elsewhere(&view.volume, node)));
    if view.accesses > 0 {
        parts.push(format!("How good it was:\n{}", experts(&view.experts)));
        parts.extend(calibrated(view));
        parts.push(soon(view));
    }
    let order = if view.moving.is_some() { "Next in the move" } else { "First in a move that began now" };
    parts.push(match view.first.is_empty() {
        true => format!("{order}: nothing."),
        false => format!("{order}:\n{}", first(&view.first)),
    });
    parts.extend(view.moving.as_ref().map(moving));
    parts.extend(view.gap_over_time.last().filter(|_| view.moving.is_none()).map(moved));
    parts.join("\n\n")
}

fn began_with(like: &str) -> String {
    format!("what volume {like} had learned")
}

/// Where a move that drains here is forecast.
fn elsewhere(volume: &str, node: &str) -> String {
    format!(
        "This volume is being moved here from node {node}, whose loop forecasts the move: there, ask\n  gnomon forecast show {volume}"
    )
}

fn calibrated(view: &ForecastView) -> Option<String> {
    let error = view.calibration_error?;
    let ended: u64 = view.calibration.iter().map(|bin| bin.ended).sum();
    let points = 100.0 * error;
    Some(format!("Chances were off by {points:.0} points in the mean, over {ended} forecasts that ended."))
}

fn seen(view: &ForecastView) -> String {
    match view.accesses {
        0 if view.before => {
            "what was kept of before: no access has been seen yet since the daemon started".to_string()
        }
        0 => "nothing: no access has been seen yet since the daemon started".to_string(),
        accesses if view.before => {
            format!("what was kept of before, and {accesses} accesses since the daemon started")
        }
        accesses => format!("{accesses} accesses since the daemon started"),
    }
}

fn soon(view: &ForecastView) -> String {
    let bar = format!("at least {:.2}, within {:.0} s", view.threshold, view.horizon_s);
    match (view.reads.first(), view.expected.is_empty()) {
        (None, _) => "Expected soon: nothing, for nothing was read yet.".to_string(),
        (Some(read), true) => format!("Expected soon: nothing new. Last read: {}.", read_words(read)),
        (Some(read), false) => {
            format!("Expected soon ({bar}), after a read of {}:\n{}", read_words(read), expected(&view.expected))
        }
    }
}

fn read_words(read: &ReadView) -> String {
    format!("{} at {}, {} ago", Bytes(read.bytes), read.offset, span(read.ago_s))
}

fn experts(experts: &[ExpertView]) -> String {
    let head = ["CLOCK", "EXPERT", "WEIGHT", "FORECASTS", "TRUE", "COVERAGE", "LEAD", "WASTED", "MEMORY"];
    let rows: Vec<[String; 9]> = experts
        .iter()
        .map(|row| {
            let (clock, expert, weight) = (row.clock.clone(), row.expert.clone(), format!("{:.3}", row.weight));
            let Some(worth) = &row.worth else {
                return std::array::from_fn(|at| {
                    [&clock, &expert, &weight].get(at).map_or("-", |cell| cell).to_string()
                });
            };
            let [precision, coverage] = [worth.precision, worth.coverage].map(percent);
            let state = if worth.state == 0 { "-".to_string() } else { Bytes(worth.state).to_string() };
            let (ended, lead, wasted) =
                (worth.ended.to_string(), span(worth.lead_s), Bytes(worth.wasted).to_string());
            [clock, expert, weight, ended, precision, coverage, lead, wasted, state]
        })
        .collect();
    table(head, &rows)
}

fn expected(expected: &[ExpectedView]) -> String {
    let row = |expected: &ExpectedView| {
        let due = expected.left_s.map_or("ran out".to_string(), |left| format!("within {}", span(left)));
        let acted = if expected.is_heard { "yes" } else { "no" };
        [
            expected.offset.to_string(),
            Bytes(expected.bytes).to_string(),
            expected.expert.clone(),
            percent(expected.chance),
            due,
            acted.to_string(),
        ]
    };
    table(["OFFSET", "SIZE", "EXPERT", "CHANCE", "DUE", "ACTED ON"], &expected.iter().map(row).collect::<Vec<_>>())
}

fn first(first: &[FirstView]) -> String {
    let ago = |ago: Option<f64>| ago.map_or("never".to_string(), |ago| format!("{} ago", span(ago)));
    let row = |first: &FirstView| {
        [
            first.offset.to_string(),
            Bytes(first.bytes).to_string(),
            first.expert.clone(),
            first.chance.map_or("-".to_string(), percent),
            first.reads.to_string(),
            ago(first.last_read_s),
            first.writes.to_string(),
            ago(first.last_write_s),
        ]
    };
    let head = ["OFFSET", "SIZE", "EXPERT", "CHANCE", "READS", "LAST", "WRITES", "LAST"];
    table(head, &first.iter().map(row).collect::<Vec<_>>())
}

fn moving(moving: &MovingView) -> String {
    let phase = if moving.switched { "the guest runs at the destination" } else { "the guest runs here" };
    let reads = moving.hits + moving.stalls;
    let stalls = match reads {
        0 => "no read has come from the destination so far".to_string(),
        _ => format!(
            "{} of {reads} reads waited ({:.2} %), {} of them for what was on its way",
            moving.stalls,
            100.0 * moving.stalled_share,
            moving.late
        ),
    };
    let gap = match (moving.gap_closed, moving.stalls_sequential, moving.stalls_oracle) {
        (Some(gap), Some(sequential), Some(oracle)) => {
            format!(
                "{gap:.2} so far (in address order {sequential} would have waited, had the future been known {oracle})"
            )
        }
        _ => "nothing to tell so far".to_string(),
    };
    let carried = format!("{}, {} of it for nothing", Bytes(moving.moved), Bytes(moving.wasted));
    let again = format!("{} given up for better ones, {} failed", moving.dropped, moving.failed);
    let lacking = format!("{}, {} on their way", Bytes(moving.lacking), Bytes(moving.in_flight));
    facts(&[
        ("move", moving.job.clone().unwrap_or_default()),
        ("phase", phase.to_string()),
        ("lacking", lacking),
        ("stalls", stalls),
        ("gap closed", gap),
        ("carried", carried),
        ("copies", again),
    ])
}

/// What the last move was worth.
fn moved(last: &GapView) -> String {
    let GapView { reads, stalls, stalls_sequential: sequential, stalls_oracle: oracle, .. } = last;
    let gap = last.gap_closed.map_or(String::new(), |gap| format!(", {gap:.2} of the gap was closed"));
    format!(
        "In the last move {stalls} of {reads} reads waited{gap} (in address order {sequential} would have, had the future \
         been known {oracle})."
    )
}

fn percent(share: f32) -> String {
    format!("{:.0} %", 100.0 * share)
}

/// A time as people say it, to two digits or so.
fn span(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.0} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_said_as_people_do() {
        let cases = [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.0, "59 s"), (600.0, "10 min"), (86_400.0, "24 h")];
        cases.into_iter().for_each(|(seconds, said)| assert_eq!(span(seconds), said));
    }

    #[test]
    fn a_volume_without_history_says_so_and_claims_nothing() {
        let said = words(&ForecastView { volume: "root".into(), role: "primary".into(), ..ForecastView::default() });
        assert!(said.contains("no access has been seen yet") && said.contains("began now: nothing."), "{said}");
        assert!(!said.contains("CHANCE") && !said.contains("Expected"), "{said}");
    }

    #[test]
    fn where_a_move_is_forecast_is_said_with_the_command() {
        let view = ForecastView { volume: "root".into(), ask_node: Some("a".into()), ..ForecastView::default() };
        let said = words(&view);
        assert!(said.contains("from node a") && said.contains("gnomon forecast show root"), "{said}");
    }

    #[test]
    fn a_move_says_what_it_cost() {
        let (hits, stalls, stalled_share, moved) = (3, 1, 0.25, 1 << 20);
        let told = MovingView { switched: true, hits, stalls, stalled_share, moved, ..MovingView::default() };
        let said = moving(&told);
        assert!(said.contains("1 of 4 reads waited (25.00 %)") && said.contains("1.0 MiB"), "{said}");
        assert!(moving(&MovingView::default()).contains("no read has come"), "no share of nothing");
        let (stalls_sequential, stalls_oracle, gap_closed) = (Some(9), Some(1), Some(0.75));
        let said = moving(&MovingView { stalls_sequential, stalls_oracle, gap_closed, ..told });
        assert!(said.contains("0.75 so far (in address order 9"), "{said}");
    }
}
