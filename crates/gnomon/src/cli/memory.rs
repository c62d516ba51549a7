//! `gnomon vm memory`: a running VM's memory.

use gnomon_terms::Bytes;

use super::{Context, Ended, output::facts};
use crate::api::types::{DimmView, MemoryChange, MemoryView, ResizeMemory, SetMemoryAuto};

/// `gnomon vm memory`
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("deed").args(["grow", "shrink", "auto"])))]
pub struct MemoryArgs {
    /// Which VM
    name: String,
    /// Give the guest so much more, in steps of 128 MiB: what is staged for its trust group first
    #[arg(long, value_name = "SIZE")]
    grow: Option<Bytes>,
    /// Ask the guest to give so much back: whole DIMMs, those first that it has touched least, as many as fit
    #[arg(long, value_name = "SIZE")]
    shrink: Option<Bytes>,
    /// Have its memory follow what its guest needs, as the agent in it says (`gnomon vm run --agent`)
    #[arg(long, value_name = "on|off", value_parser = on_or_off)]
    auto: Option<bool>,
}

fn on_or_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        other => Err(format!("'{other}' is not known: write on or off")),
    }
}

pub(super) async fn run(args: MemoryArgs, context: &Context) -> Ended {
    let Context { client, output } = context;
    let path = format!("/v1/vms/{}/memory", args.name);
    let size = |bytes: Option<Bytes>| bytes.map(|bytes| bytes.0);
    match args.auto {
        Some(on) => {
            let view: MemoryView = client.post(&format!("{path}/auto"), &SetMemoryAuto { on }).await?;
            output.result(&view, words);
        }
        None if args.grow.is_some() || args.shrink.is_some() => {
            let ask = ResizeMemory { grow: size(args.grow), shrink: size(args.shrink) };
            let change: MemoryChange = client.post(&path, &ask).await?;
            output.result(&change, told);
        }
        None => output.result(&client.get::<MemoryView>(&path).await?, words),
    }
    Ok(())
}

fn words(view: &MemoryView) -> String {
    let most = if view.most > view.boot {
        Bytes(view.most).to_string()
    } else {
        "as now: it was started without --max-memory".into()
    };
    let mut pairs = vec![
        ("vm", view.vm.clone()),
        ("group", view.group.clone().unwrap_or_default()),
        ("memory", Bytes(view.now).to_string()),
        ("at most", most),
        ("started with", format!("{}, of which the host has given {}", Bytes(view.boot), Bytes(view.backed))),
        ("free slots", view.free_slots.to_string()),
        ("by itself", if view.auto { "yes".into() } else { String::new() }),
    ];
    if let Some(heat) = view.heat.as_ref().filter(|heat| heat.hot > 0) {
        let said = if heat.from == "writes" { "what it writes" } else { "what it touches" };
        let took = heat.took_us / 1e3;
        pairs.push((
            "used most",
            format!("{} of 64 parts, for nine tenths of {said} (a look: {took:.1} ms)", heat.hot),
        ));
    }
    pairs.extend(view.dimms.iter().map(|dimm| ("added", added(dimm))));
    facts(&pairs)
}

fn added(dimm: &DimmView) -> String {
    let touched = dimm.touched_percent.map_or_else(String::new, |percent| format!(", {percent} % touched"));
    format!("{} ({}{touched})", Bytes(dimm.size), dimm.id)
}

fn told(change: &MemoryChange) -> String {
    let done = Bytes(change.done.unsigned_abs());
    let what = match change.asked >= 0 {
        true => format!("{} has {done} more, {} of it was staged", change.vm, Bytes(change.staged)),
        false => format!("{} gave {done} back", change.vm),
    };
    let took = format!("{} in all, {:.0} ms", Bytes(change.now), change.took_ms);
    match &change.why {
        Some(why) => format!("{what} ({took}); not all: {why}"),
        None => format!("{what} ({took})"),
    }
}
