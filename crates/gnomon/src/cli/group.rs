//! `gnomon group`: trust groups, and the memory that is made ready for them.

use std::time::Duration;

use clap::Subcommand;
use gnomon_terms::Bytes;

use super::{
    Context, Ended, Failure,
    output::{facts, table},
};
use crate::{
    api::types::{CreateGroup, GroupView, SetHorizon, StockView},
    names,
};

/// How often `stats --watch` looks.
const WATCH: Duration = Duration::from_secs(1);
/// Columns of a bar.
const BAR: usize = 40;

/// `gnomon group`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a trust group: VMs that may use one pool of staged memory
    #[command(after_help = "Examples:\n  gnomon group create shop\n  \
                            gnomon group create shop --budget 8G --reserve 1G --horizon 10m\n  \
                            gnomon group create db --huge-pages      from the 2 MiB pages that the host has reserved\n  \
                            gnomon group create db --numa-node 1     on a host with several NUMA nodes\n\n\
                            Memory of one group never reaches another: a block that was at a guest goes back to the host.")]
    Create(CreateArgs),
    /// List trust groups
    #[command(after_help = "Examples:\n  gnomon group ls")]
    Ls,
    /// Remove a trust group: what is staged for it goes back to the host; its VMs run on and keep what they have
    #[command(after_help = "Examples:\n  gnomon group rm shop")]
    Rm {
        /// Which group
        #[arg(value_parser = names::parse)]
        group: String,
    },
    /// Add a VM to a trust group; it leaves the one that it is in
    #[command(after_help = "Examples:\n  gnomon group add shop web\n\n\
                            Its disks of which nothing was learned yet begin with what the group's other disks have learned.")]
    Add {
        /// Which group
        #[arg(value_parser = names::parse)]
        group: String,
        /// Which VM
        #[arg(value_parser = names::parse)]
        vm: String,
    },
    /// Take a VM out of its trust group; what it told of its needs goes with it
    #[command(after_help = "Examples:\n  gnomon group remove shop web")]
    Remove {
        /// Which group
        #[arg(value_parser = names::parse)]
        group: String,
        /// Which VM
        #[arg(value_parser = names::parse)]
        vm: String,
    },
    /// Make memory ready ahead for a group (enableShadowing)
    #[command(after_help = "Examples:\n  gnomon group enable shop")]
    Enable {
        /// Which group
        #[arg(value_parser = names::parse)]
        group: String,
    },
    /// Make no more memory ready for a group; what is staged goes back to the host (disableShadowing)
    #[command(after_help = "Examples:\n  gnomon group disable shop")]
    Disable {
        /// Which group
        #[arg(value_parser = names::parse)]
        group: String,
    },
    /// Say how far ahead is looked (setShadowingHorizon)
    #[command(after_help = "Examples:\n  gnomon group horizon shop 10m")]
    Horizon {
        /// Which group
        #[arg(value_parser = names::parse)]
        group: String,
        /// 30s, 10m, 1h
        #[arg(value_parser = span)]
        horizon: Duration,
    },
    /// Show how a group's staged memory does: hits, what lies idle, what a reserve of the same size would have done, what is
    /// expected and who says so (getShadowingStats)
    #[command(after_help = "Examples:\n  gnomon group stats shop\n  gnomon group stats shop --watch\n  \
                            gnomon group stats shop --json")]
    Stats {
        /// Which group
        #[arg(value_parser = names::parse)]
        group: String,
        /// Go on, once a second
        #[arg(long)]
        watch: bool,
    },
}

/// `gnomon group create`
#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    /// Its name
    #[arg(value_parser = names::parse)]
    name: String,
    /// The most that is staged for it
    #[arg(long, default_value = "2GiB")]
    budget: Bytes,
    /// What is kept staged while nothing is known yet of what it needs
    #[arg(long, default_value = "256MiB")]
    reserve: Bytes,
    /// How far ahead is looked [default: a step of the node's clock, memory.step]
    #[arg(long, value_parser = span)]
    horizon: Option<Duration>,
    /// A size that nobody has asked for in this time is not kept staged, once forecasts decide
    #[arg(long, default_value = "1h", value_parser = span)]
    max_age: Duration,
    /// Blocks of the 2 MiB pages that the host has reserved (vm.nr_hugepages)
    #[arg(long)]
    huge_pages: bool,
    /// The NUMA node that its blocks are to be on, as long as that has room [default: the one that its VMs are bound to, or
    /// else the one with most room]
    #[arg(long)]
    numa_node: Option<u32>,
}

/// A time with its unit.
fn span(text: &str) -> Result<Duration, String> {
    let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let factor = match &text[end..] {
        "" | "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        _ => 0,
    };
    let seconds = text[..end].parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    seconds
        .filter(|seconds| *seconds > 0)
        .map(Duration::from_secs)
        .ok_or(format!("'{text}' is no time: write 30s, 10m or 1h"))
}

pub(super) async fn run(command: Command, context: &Context) -> Ended {
    let Context { client, output } = context;
    let at = |group: &str, more: &str| format!("/v1/groups/{group}{more}");
    let nothing = serde_json::json!({});
    let view: GroupView = match command {
        Command::Ls => {
            let groups: Vec<GroupView> = client.get("/v1/groups").await?;
            output.result(&groups, |groups| list(groups));
            return Ok(());
        }
        Command::Stats { group, watch } => return stats(&at(&group, ""), watch, context).await,
        Command::Create(args) => client.post("/v1/groups", &request(&args)).await?,
        Command::Rm { group } => client.delete(&at(&group, "")).await?,
        Command::Add { group, vm } => client.post(&at(&group, &format!("/members/{vm}")), &nothing).await?,
        Command::Remove { group, vm } => client.delete(&at(&group, &format!("/members/{vm}"))).await?,
        Command::Enable { group } => client.post(&at(&group, "/enable"), &nothing).await?,
        Command::Disable { group } => client.post(&at(&group, "/disable"), &nothing).await?,
        Command::Horizon { group, horizon } => {
            client.post(&at(&group, "/horizon"), &SetHorizon { seconds: horizon.as_secs() }).await?
        }
    };
    output.result(&view, words);
    Ok(())
}

fn request(args: &CreateArgs) -> CreateGroup {
    CreateGroup {
        name: args.name.clone(),
        budget: args.budget.0,
        reserve: args.reserve.0,
        horizon_s: args.horizon.map(|horizon| horizon.as_secs()),
        max_age_s: args.max_age.as_secs(),
        huge_pages: args.huge_pages,
        numa_node: args.numa_node,
    }
}

async fn stats(path: &str, watch: bool, context: &Context) -> Result<(), Failure> {
    let mut tick = tokio::time::interval(WATCH);
    loop {
        tick.tick().await;
        let view: GroupView = context.client.get(path).await?;
        if watch && !context.output.is_json() {
            // Home, and nothing below: the picture is drawn over the one before.
            print!("\x1b[H\x1b[J");
        }
        context.output.result(&view, words);
        if !watch {
            return Ok(());
        }
    }
}

fn list(groups: &[GroupView]) -> String {
    let rows: Vec<[String; 6]> = groups
        .iter()
        .map(|group| {
            [
                group.name.clone(),
                if group.shadowing { "on".into() } else { "off".into() },
                group.members.len().to_string(),
                Bytes(group.accounts.staged).to_string(),
                Bytes(group.accounts.assigned).to_string(),
                group.requests.hit_percent.map(|hit| format!("{hit:.0} %")).unwrap_or_default(),
            ]
        })
        .collect();
    table(["NAME", "SHADOWING", "VMS", "STAGED", "AT GUESTS", "HIT"], &rows)
}

fn words(view: &GroupView) -> String {
    let (requests, expected, accounts) = (&view.requests, &view.expected, &view.accounts);
    let seconds = |seconds: u64| format!("{seconds} s");
    let range = |of: Option<[f64; 2]>, unit: &str, high: &str| {
        of.map(|[middle, most]| format!("{middle:.1} {unit} ({high} of 100: {most:.1})")).unwrap_or_default()
    };
    let asked = requests.hit_bytes + requests.missed_bytes;
    let percent = |of: Option<f64>| of.map(|percent| format!("{percent:.1} %")).unwrap_or_default();
    let expects = expected.bytes.map(|[middle, most]| format!("{}, hardly more than {}", Bytes(middle), Bytes(most)));
    let believed = expected.believed.iter().filter(|model| model.weight >= 0.05);
    let believed: Vec<String> = believed.map(|model| format!("{} {:.2}", model.model, model.weight)).collect();
    facts(&[
        ("group", view.name.clone()),
        ("shadowing", if view.shadowing { "on".into() } else { "off".into() }),
        ("members", view.members.join(", ")),
        ("horizon", seconds(view.horizon_s)),
        ("budget", Bytes(view.budget).to_string()),
        ("staged", format!("{}  {}", bar(accounts.staged, view.budget), stock(&view.staged))),
        ("on NUMA nodes", on_nodes(view)),
        ("meant to be", stock(&view.target)),
        ("held back", view.held_back.clone().unwrap_or_default()),
        ("at guests", Bytes(accounts.assigned).to_string()),
        ("requests", format!("{}, {}", requests.requests, Bytes(asked))),
        (
            "hit",
            requests
                .hit_percent
                .map(|hit| format!("{}  {hit:.1} %", bar(requests.hit_bytes, asked)))
                .unwrap_or_default(),
        ),
        (
            "of another node",
            if requests.far_bytes > 0 { Bytes(requests.far_bytes).to_string() } else { String::new() },
        ),
        ("always as much", percent(requests.static_hit_percent)),
        ("idle", Bytes(requests.idle_bytes).to_string()),
        ("staged request", range(requests.staged_ms, "ms", "95")),
        ("cold request", range(requests.cold_ms, "ms", "95")),
        ("decision", range(requests.decision_us, "us", "99")),
        ("expected", expects.unwrap_or_else(|| format!("not known yet ({} steps seen)", expected.steps))),
        ("decided by", expected.mode.clone()),
        ("gain", percent(expected.gain_percent)),
        ("covered", percent(expected.covered_percent)),
        ("believed", believed.join(", ")),
    ])
}

/// A share as a bar.
fn bar(part: u64, of: u64) -> String {
    let filled = (part as f64 / of.max(1) as f64 * BAR as f64).round() as usize;
    let filled = filled.min(BAR);
    format!("{}{}", "█".repeat(filled), "░".repeat(BAR - filled))
}

fn stock(stock: &[StockView]) -> String {
    let all: u64 = stock.iter().map(|stock| stock.size * u64::from(stock.blocks)).sum();
    let each: Vec<String> = stock.iter().map(|stock| format!("{} x {}", stock.blocks, Bytes(stock.size))).collect();
    match each.is_empty() {
        true => "nothing".to_string(),
        false => format!("{} ({})", Bytes(all), each.join(", ")),
    }
}

/// What is on which NUMA node, and which is wished for; nothing on a host with one.
fn on_nodes(view: &GroupView) -> String {
    let nodes: Vec<String> = view.numa.iter().map(|of| format!("{}: {}", of.node, Bytes(of.staged))).collect();
    match view.numa_node {
        Some(wish) => format!("{} (meant for {wish})", nodes.join(", ")).trim_start().to_string(),
        None => nodes.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::NumaView;

    #[test]
    fn times_have_units() {
        let table = [
            ("30s", Some(30)),
            ("30", Some(30)),
            ("10m", Some(600)),
            ("1h", Some(3600)),
            ("0s", None),
            ("x", None),
            ("1d", None),
            ("", None),
        ];
        for (text, seconds) in table {
            assert_eq!(span(text).ok(), seconds.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn a_bar_is_as_long_as_its_share() {
        assert_eq!(bar(1, 2).chars().filter(|block| *block == '█').count(), BAR / 2);
        assert_eq!(bar(9, 2), "█".repeat(BAR));
        assert_eq!(bar(0, 0), "░".repeat(BAR));
    }

    #[test]
    fn nodes_are_told_where_there_are_several() {
        let node = |node, mib: u64| NumaView { node, staged: mib << 20 };
        let view = |wish, numa| GroupView { numa_node: wish, numa, ..GroupView::default() };
        assert_eq!(on_nodes(&view(None, vec![])), "");
        assert_eq!(on_nodes(&view(None, vec![node(0, 128), node(1, 256)])), "0: 128.0 MiB, 1: 256.0 MiB");
        assert_eq!(on_nodes(&view(Some(1), vec![node(1, 256)])), "1: 256.0 MiB (meant for 1)");
        assert_eq!(on_nodes(&view(Some(1), vec![])), "(meant for 1)");
    }

    #[test]
    fn what_is_staged_is_told_by_size() {
        let two = StockView { size: 128 << 20, blocks: 2 };
        assert_eq!(stock(&[two]), "256.0 MiB (2 x 128.0 MiB)");
        assert_eq!(stock(&[]), "nothing");
    }
}
