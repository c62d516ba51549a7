//! `gnomon vm protect`, `unprotect`, `switchover` and `failover`: a VM's shadows on other nodes.

use gnomon_terms::Bytes;

use super::{Context, Ended, volume::begin};
use crate::api::types::{
    FailoverVm, GuardView, ProtectVm, ProtectionState, ProtectionView, SwitchVm, UnprotectVm, VmView,
};

/// `gnomon vm protect`
#[derive(Debug, clap::Args)]
pub struct ProtectArgs {
    /// Which VM
    name: String,
    /// The node of its shadow; several are shadows beside each other, and are begun one after the other
    #[arg(long, value_name = "NODE", value_delimiter = ',', required = true)]
    on: Vec<String>,
    /// From one checkpoint to the next: auto (as the guest's pauses and the link allow), 100ms, 2s
    #[arg(long, value_name = "TIME", default_value = "auto", value_parser = interval)]
    interval: Interval,
    /// Nothing that the guest says on its network cards leaves before its shadow has the state it comes from; with
    /// --auto-failover the guest stands rather than run unsure of its lease
    #[arg(long)]
    strict: bool,
    /// The shadow takes over by itself when this node's lease at the shared store has ended; needs `gnomon serve --store`
    #[arg(long)]
    auto_failover: bool,
    /// Do not wait for the first copy
    #[arg(long)]
    detach: bool,
}

/// `gnomon vm unprotect`
#[derive(Debug, clap::Args)]
pub struct UnprotectArgs {
    /// Which VM
    name: String,
    /// Give up only the shadow at this node
    #[arg(long, value_name = "NODE")]
    on: Option<String>,
}

/// `gnomon vm switchover`
#[derive(Debug, clap::Args)]
pub struct SwitchoverArgs {
    /// Which VM
    name: String,
    /// To which node, of a VM with several shadows; without it, to the first one that is protected
    #[arg(long, value_name = "NODE")]
    to: Option<String>,
    /// Do not wait
    #[arg(long)]
    detach: bool,
}

/// `gnomon vm failover`
#[derive(Debug, clap::Args)]
pub struct FailoverArgs {
    /// Which VM
    name: String,
    /// The node that ran it, which you have made sure cannot run or write any more; and any node with another shadow of it
    /// that does not answer, of which you have made sure the same
    #[arg(long, value_name = "NODE", value_delimiter = ',')]
    i_have_fenced: Vec<String>,
    /// Do not wait
    #[arg(long)]
    detach: bool,
}

/// From one checkpoint to the next; `None` leaves it to be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval(Option<u64>);

fn interval(text: &str) -> Result<Interval, String> {
    if text == "auto" {
        return Ok(Interval(None));
    }
    let (number, factor) = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(number), _) => (number, 1),
        (None, Some(number)) => (number, 1000),
        (None, None) => return Err("write auto, or a time such as 100ms or 2s".to_string()),
    };
    let number: u64 = number.parse().map_err(|_| "write a whole number before ms or s")?;
    number.checked_mul(factor).map(|ms| Interval(Some(ms))).ok_or_else(|| "too long".to_string())
}

/// Begins to protect a VM and follows the first copy, node by node.
pub(super) async fn protect(args: ProtectArgs, context: &Context) -> Ended {
    for on in args.on {
        let request =
            ProtectVm { on, interval_ms: args.interval.0, strict: args.strict, auto_failover: args.auto_failover };
        begin(&format!("/v1/vms/{}/protect", args.name), &request, args.detach, context).await?;
    }
    Ok(())
}

/// Gives shadows up.
pub(super) async fn unprotect(args: UnprotectArgs, context: &Context) -> Ended {
    let UnprotectArgs { name, on } = args;
    let request = UnprotectVm { on: on.clone() };
    let _: serde_json::Value = context.client.post(&format!("/v1/vms/{name}/unprotect"), &request).await?;
    context.output.result(&serde_json::json!({ "unprotected": name, "on": on }), |_| match &on {
        Some(node) => format!("{name} has no shadow at node {node} any more"),
        None => format!("{name} has no shadow any more"),
    });
    Ok(())
}

/// Hands a VM over and follows that.
pub(super) async fn switchover(args: SwitchoverArgs, context: &Context) -> Ended {
    let request = SwitchVm { to: args.to };
    begin(&format!("/v1/vms/{}/switchover", args.name), &request, args.detach, context).await
}

/// Goes on with a VM whose shadow is here.
pub(super) async fn failover(args: FailoverArgs, context: &Context) -> Ended {
    let request = FailoverVm { fenced: args.i_have_fenced };
    begin(&format!("/v1/vms/{}/failover", args.name), &request, args.detach, context).await
}

/// What `vm show` says of shadows.
pub(super) fn facts_of(vm: &VmView) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    let ms = |value: Option<f64>| value.map(|ms| format!("{ms:.1} ms")).unwrap_or_default();
    for shadow in &vm.protections {
        facts.push(("shadow", format!("on node {}: {}", shadow.to, word(shadow.state))));
        facts.push(("why", shadow.why.clone().unwrap_or_default()));
        let has = |checkpoint| format!("{checkpoint} of epoch {}", shadow.epoch);
        facts.push(("checkpoint", shadow.checkpoint.map(has).unwrap_or_default()));
        facts.push(("lag", ms(shadow.lag_ms)));
        facts.push(("interval", ms((shadow.interval_ms > 0.0).then_some(shadow.interval_ms))));
        facts.push(("sent", format!("{}, {} last", Bytes(shadow.bytes), Bytes(shadow.last_bytes))));
        if let (Some(half), Some(most)) = (shadow.pause_p50_ms, shadow.pause_p99_ms) {
            facts.push(("pause", format!("p50 {half:.1} ms, p99 {most:.1} ms")));
        }
        facts.push(("tracker", shadow.tracker.clone()));
        facts.push(("strict", strictness(shadow, vm.nics.is_empty()).to_string()));
        facts.extend(shadow.guard.iter().flat_map(guard_facts));
    }
    if let Some(shadow) = &vm.shadow {
        let link = if shadow.connected { "connected" } else { "no session" };
        facts.push(("shadow of", format!("node {} ({link})", shadow.of)));
        let has = shadow.checkpoint.zip(shadow.epoch).zip(shadow.age_ms);
        let has = has.map(|((checkpoint, epoch), age)| format!("{checkpoint} of epoch {epoch}, {age:.0} ms old"));
        facts.push(("checkpoint", has.unwrap_or_else(|| "none: it could not go on here".to_string())));
        facts.push(("other shadows", shadow.siblings.join(", ")));
        facts.extend(shadow.guard.iter().flat_map(guard_facts));
    }
    facts
}

/// What strict mode does just now.
fn strictness(shadow: &ProtectionView, no_card: bool) -> &'static str {
    match (shadow.strict, shadow.exposed, no_card) {
        (false, ..) => "",
        (true, _, true) => "there is no network card, and nothing to hold",
        (true, true, _) => {
            "suspended: what the guest says does not wait for this shadow, which is lost, late or has nothing yet"
        }
        (true, false, _) => "what the guest says leaves when this shadow has the state it comes from",
    }
}

fn guard_facts(guard: &GuardView) -> Vec<(&'static str, String)> {
    let armed = if guard.armed { "armed" } else { "not armed" };
    let held = guard.term.zip(guard.holder.as_ref()).map(|(term, holder)| format!("{term}, held by node {holder}"));
    vec![
        ("auto failover", armed.to_string()),
        ("term", held.unwrap_or_else(|| "none seen at the store".to_string())),
        ("lease", guard.lease_ms.map(|ms| format!("{ms:.0} ms")).unwrap_or_default()),
        ("store", guard.trouble.clone().unwrap_or_default()),
    ]
}

/// What `vm ls` says of shadows.
pub(super) fn word_of(vm: &VmView) -> String {
    match &vm.shadow {
        Some(shadow) => format!("of {}", shadow.of),
        None => {
            let by = |shadow: &ProtectionView| format!("{} by {}", word(shadow.state), shadow.to);
            vm.protections.iter().map(by).collect::<Vec<_>>().join(", ")
        }
    }
}

fn word(state: ProtectionState) -> &'static str {
    match state {
        ProtectionState::Syncing => "syncing",
        ProtectionState::Protected => "protected",
        ProtectionState::Behind => "behind",
        ProtectionState::Lost => "lost",
        ProtectionState::Given => "given",
        ProtectionState::Ended => "ended",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_times_or_auto() {
        let table = [
            ("auto", Some(None)),
            ("100ms", Some(Some(100))),
            ("2s", Some(Some(2000))),
            ("100", None),
            ("-1ms", None),
            ("1.5s", None),
            ("18446744073709551615s", None),
            ("s", None),
        ];
        for (text, expected) in table {
            assert_eq!(interval(text).ok(), expected.map(Interval), "{text}");
        }
    }
}
