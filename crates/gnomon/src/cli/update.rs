//! `gnomon vm update`, `approve` and `events`: another QEMU, or another name of what it has, under a running guest; a
//! command in it; and what was done to a VM.

use std::path::PathBuf;

use super::{
    Context, Ended, outlook,
    output::table,
    volume::{absolute, begin},
};
use crate::api::types::{Approve, EventView, UpdateVm};

/// `gnomon vm update`
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("change").required(true).multiple(true).args(["qemu", "machine", "cpu", "guest_exec"])))]
pub struct UpdateArgs {
    /// Which VM
    name: String,
    /// The QEMU it gets: a program, or the folder into which its packages were unpacked
    #[arg(long, value_name = "PATH")]
    qemu: Option<PathBuf>,
    /// The machine type it gets, which has to be the one it has, by another name: q35 for pc-q35-7.2 in a QEMU 7.2. A guest
    /// changes to another one by booting
    #[arg(long, value_name = "TYPE")]
    machine: Option<String>,
    /// The processor model it gets, which has to show the guest the same processor, by another name: qemu64-v1 for qemu64.
    /// A guest changes to another one by booting
    #[arg(long, value_name = "MODEL")]
    cpu: Option<String>,
    /// A command for the guest's own shell, such as an upgrade of its packages: by qemu-guest-agent in the guest (vm run
    /// --guest-agent). When the copy did well after it, it is run in the guest, and not undone there
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["qemu", "machine", "cpu"])]
    guest_exec: Option<String>,
    /// How long that command may take, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600.0, value_parser = seconds, requires = "guest_exec")]
    guest_exec_timeout: f64,
    /// A command that says by exit code 0 that the copy is well; GNOMON_VM, GNOMON_QMP, GNOMON_CONSOLE and
    /// GNOMON_PORT_NAME tell it where the copy is
    #[arg(long, value_name = "COMMAND")]
    probe: Option<String>,
    /// How long the probe may take, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0, value_parser = seconds)]
    probe_timeout: f64,
    /// How long the copy, and then the guest, is watched, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0, value_parser = seconds)]
    observe: f64,
    /// Who lets the guest switch when its copy did well: auto (the verdict), manual (`gnomon vm approve`)
    #[arg(long, value_enum, default_value = "auto")]
    approve: Approve,
    /// Switch without a trial on a copy
    #[arg(long, conflicts_with_all = ["probe", "approve"])]
    untried: bool,
    /// Update nothing: say what would change, whether it would be refused, and what earlier updates let expect
    #[arg(long, conflicts_with = "detach")]
    dry_run: bool,
    /// Do not wait
    #[arg(long)]
    detach: bool,
}

/// Seconds, with a fraction; 30m would be 1800.
fn seconds(text: &str) -> Result<f64, String> {
    let number: f64 =
        text.strip_suffix('s').unwrap_or(text).parse().map_err(|_| "write seconds, such as 30 or 0.5")?;
    match (0.0..=86_400.0).contains(&number) {
        true => Ok(number),
        false => Err("between 0 and 86400 seconds".to_string()),
    }
}

/// Begins an update and follows it.
pub(super) async fn update(args: UpdateArgs, context: &Context) -> Ended {
    let request = UpdateVm {
        qemu: args.qemu.map(absolute).transpose()?,
        machine: args.machine,
        cpu: args.cpu,
        guest_exec: args.guest_exec,
        guest_exec_timeout: args.guest_exec_timeout,
        probe: args.probe,
        probe_timeout: args.probe_timeout,
        observe: args.observe,
        approve: args.approve,
        untried: args.untried,
    };
    let path = format!("/v1/vms/{}/update", args.name);
    match args.dry_run {
        true => outlook::of_update(&format!("{path}/outlook"), &request, context).await,
        false => begin(&path, &request, args.detach, context).await,
    }
}

/// Lets a guest switch whose copy did well.
pub(super) async fn approve(name: &str, context: &Context) -> Ended {
    let _: serde_json::Value = context.client.post(&format!("/v1/vms/{name}/approve"), &()).await?;
    context.output.result(&serde_json::json!({ "approved": name }), |_| format!("{name} may switch"));
    Ok(())
}

/// Lists what was done to a VM.
pub(super) async fn events(name: &str, context: &Context) -> Ended {
    let events: Vec<EventView> = context.client.get(&format!("/v1/vms/{name}/events")).await?;
    context.output.result(&events, |events| words(events));
    Ok(())
}

fn words(events: &[EventView]) -> String {
    let rows: Vec<[String; 6]> = events
        .iter()
        .map(|event| {
            let phases: Vec<String> =
                event.phases.iter().map(|phase| format!("{} {:.1}", phase.name, phase.ms)).collect();
            [
                format!("{:.3}", event.at),
                event.what.clone(),
                event.status.clone(),
                event.to.clone(),
                event.gap_ms.map(|gap| format!("{gap:.1} ms ({})", phases.join(", "))).unwrap_or_default(),
                match &event.command {
                    Some(command) if event.reasons.is_empty() => format!("took {:.1} s", command.seconds),
                    _ => event.reasons.join("; "),
                },
            ]
        })
        .collect();
    table(["AT", "WHAT", "STATUS", "TO", "GAP", "REASONS"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_read_with_and_without_their_letter() {
        let table =
            [("30", Some(30.0)), ("0.5s", Some(0.5)), ("-1", None), ("x", None), ("1e9", None), ("NaN", None)];
        for (text, expect) in table {
            assert_eq!(seconds(text).ok(), expect, "{text}");
        }
    }
}
