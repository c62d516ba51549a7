//! A VM's other shadows, as the node of one of them and the primary deal with them: at most one takes over.
//!
//! ```text
//!   b: "a is fenced"                     c                                  c: "a is fenced"              b
//!     busy ── Cede ─────────────────────► │ not busy, not promoted             busy ── Cede ─────────────► │ promoted
//!          ◄─ free, has checkpoint 7 ──── │ what was loaded here is ended           ◄─ promoted at 2 ───── │
//!     promoted, on record                 ▼ a shadow, until it hears of it     refused: node b has it      ▼
//! ```
//! Without a witness a node cannot tell whether a sibling has taken over: so it asks, and one that does not answer has to
//! be fenced by the operator's word, like the primary. While a node takes over, or has done so, it cedes to nobody; of two
//! that ask each other at once both are refused. A sibling that has a newer checkpoint is the one to go on with.
//!
//! Each node knows its siblings on record before there can be a checkpoint at a new one.

use std::sync::Arc;

use super::{
    ended,
    family::Family,
    rpc::{Ask, Ceded},
    shadow::Keeping,
};
use crate::{
    api::{ApiError, types::ProtectVm},
    daemon::{
        Daemon,
        records::{ProtectRecord, ShadowRecord},
    },
};

// ---- at the primary ------------------------------------------------------------------------------------------------------

/// The record of one more shadow of a VM. What is the same for all of them has to be asked for as it was; and the nodes of
/// the others have to know of it first. Blocks until they do.
pub fn record_beside(daemon: &Arc<Daemon>, family: &Arc<Family>, ask: ProtectVm) -> Result<ProtectRecord, ApiError> {
    let (vm, nodes) = (&family.vm, family.nodes());
    let protected =
        |what: String| ApiError::refused(format!("VM '{vm}' is protected by node {}{what}", nodes.join(", ")));
    let Some(known) = family.members().first().map(|member| member.record.lock().clone()) else {
        return Err(ApiError::unavailable(format!("the protection of VM '{vm}' is just ending")).then("try again"));
    };
    if nodes.contains(&ask.on) {
        return Err(protected(String::new()).then(format!("end that first: `gnomon vm unprotect {vm}`")));
    }
    if family.given_to().is_some() {
        return Err(protected(", and was given to the node of a shadow".into()).then("see `gnomon vm show`"));
    }
    if let Some(what) = differs(&known, &ask) {
        return Err(protected(format!(" {what}"))
            .then("ask for the same, or end that first: `gnomon vm unprotect`, then protect it by all nodes"));
    }
    let all: Vec<String> = nodes.iter().chain([&ask.on]).cloned().collect();
    for node in &nodes {
        let question = Ask::Siblings { id: family.id.clone(), nodes: without(&all, node) };
        let told = tokio::runtime::Handle::current().block_on(ended::one_question::<()>(daemon, node, question));
        told.map_err(|error| {
            ApiError::unavailable(format!(
                "node {node} has a shadow of VM '{vm}', and has to know of another one first: {error}"
            ))
            .then(format!(
                "try again when it answers, or give that shadow up: `gnomon vm unprotect {vm} --on {node}`"
            ))
        })?;
    }
    Ok(ProtectRecord { to: ask.on, exposed: known.strict, given: None, ..known })
}

/// What of the wish is not as for the shadows that there are.
fn differs(known: &ProtectRecord, ask: &ProtectVm) -> Option<String> {
    let of = |strict: bool, auto: bool, interval: Option<u64>| {
        let strict = if strict { "with --strict" } else { "without --strict" };
        let auto = if auto { "with --auto-failover" } else { "without --auto-failover" };
        let interval = interval.map_or("auto".to_string(), |ms| format!("{ms}ms"));
        format!("{strict}, {auto}, --interval {interval}")
    };
    let here = of(known.strict, known.lease_s.is_some(), known.interval_ms);
    (here != of(ask.strict, ask.auto_failover, ask.interval_ms)).then_some(here)
}

/// Tells the nodes of a VM's shadows which others there are, now that there is one less. One that does not hear of it asks
/// one too many when it takes over.
pub fn tell_siblings(daemon: &Arc<Daemon>, family: &Arc<Family>) {
    let all = family.nodes();
    for node in all.clone() {
        let (daemon, question) =
            (Arc::clone(daemon), Ask::Siblings { id: family.id.clone(), nodes: without(&all, &node) });
        tokio::spawn(async move {
            if let Err(error) = ended::one_question::<()>(&daemon, &node, question).await {
                tracing::warn!(%error, "node {node} does not know that there is one shadow less");
            }
        });
    }
}

fn without(all: &[String], node: &str) -> Vec<String> {
    all.iter().filter(|other| *other != node).cloned().collect()
}

// ---- at the node of a shadow ---------------------------------------------------------------------------------------------

/// Asks the nodes of the other shadows to leave the guest to this one, save those that are fenced. The caller is busy
/// taking over: this node cedes to nobody meanwhile.
pub async fn ask_to_cede(daemon: &Arc<Daemon>, keeping: &Keeping, fenced: &[String]) -> Result<(), ApiError> {
    let (record, here) = (keeping.record(), keeping.has());
    for node in keeping.siblings().iter().filter(|node| !fenced.contains(node)) {
        let question = Ask::Cede { id: record.id.clone() };
        match ended::one_question::<Ceded>(daemon, node, question).await {
            Ok(ceded) => refuse_unless_ceded(record, node, here, &ceded)?,
            Err(error) => return Err(silent(record, node, &error)),
        }
    }
    Ok(())
}

fn refuse_unless_ceded(
    record: &ShadowRecord,
    node: &str,
    here: Option<(u64, u64, u64)>,
    ceded: &Ceded,
) -> Result<(), ApiError> {
    let vm = &record.vm;
    match ceded {
        Ceded::Promoted { epoch } => Err(ApiError::refused(format!("VM '{vm}' runs at node {node} since epoch {epoch}"))
            .then("the shadow here is dropped; protect the VM anew from there: `gnomon vm protect`")),
        Ceded::Busy => Err(ApiError::refused(format!("the shadow of VM '{vm}' at node {node} is just taking over"))
            .then(format!("see `gnomon vm show {vm}` there; if it runs at neither node, try again"))),
        Ceded::Free { has } if *has > here => Err(ApiError::refused(format!(
            "node {node} has a newer checkpoint of VM '{vm}' ({}) than this one ({})",
            named(*has),
            named(here)
        ))
        .then(format!(
            "go on there: `gnomon vm failover {vm} --i-have-fenced {from}`; to go on here all the same, make sure that node \
             {node} cannot run it either, and name both: `--i-have-fenced {from},{node}`",
            from = record.from
        ))),
        Ceded::Free { .. } => Ok(()),
    }
}

fn named(has: Option<(u64, u64, u64)>) -> String {
    has.map_or("none".to_string(), |(.., checkpoint)| checkpoint.to_string())
}

fn silent(record: &ShadowRecord, node: &str, error: &ApiError) -> ApiError {
    let ShadowRecord { vm, from, .. } = record;
    ApiError::refused(format!(
        "node {node} has another shadow of VM '{vm}' and may have taken over: it cannot be asked ({})",
        error.message
    ))
    .then(format!(
        "go on when it answers; or make sure that it cannot run or write any more either, and say so: `gnomon vm failover \
         {vm} --i-have-fenced {from},{node}`"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> ShadowRecord {
        ShadowRecord { siblings: vec!["c".into()], ..ShadowRecord::of("web", "a") }
    }

    #[test]
    fn a_sibling_is_gone_before_only_when_it_has_nothing_better() {
        let free = |has| Ceded::Free { has };
        let here = Some((1, 2, 7));
        let table = [
            ("it runs there", Ceded::Promoted { epoch: 2 }, here, Some("runs at node c")),
            ("both at once", Ceded::Busy, here, Some("just taking over")),
            ("it has nothing", free(None), here, None),
            ("it has the same", free(here), here, None),
            ("it has less", free(Some((1, 2, 6))), here, None),
            ("it has more", free(Some((1, 2, 8))), here, Some("--i-have-fenced a,c")),
            ("its numbers are of a later run", free(Some((1, 3, 1))), here, Some("newer")),
            ("nobody has anything", free(None), None, None),
            ("only the other has something", free(here), None, Some("newer")),
        ];
        for (what, ceded, here, refused) in table {
            let told = refuse_unless_ceded(&record(), "c", here, &ceded).err();
            let said =
                told.as_ref().map(|error| format!("{} {}", error.message, error.next.as_deref().unwrap_or_default()));
            assert_eq!(said.is_some(), refused.is_some(), "{what}: {said:?}");
            assert!(
                refused.is_none_or(|words| said.as_ref().is_some_and(|said| said.contains(words))),
                "{what}: {said:?}"
            );
        }
        let silent = silent(&record(), "c", &ApiError::unavailable("no answer"));
        assert!(silent.next.is_some_and(|next| next.contains("--i-have-fenced a,c")), "what to do is said");
    }

    #[test]
    fn one_more_shadow_is_asked_for_as_the_others_were() {
        let known = ProtectRecord {
            id: "a-1-p1".into(),
            vm: "web".into(),
            to: "b".into(),
            interval_ms: Some(50),
            epoch: 1,
            volumes: Vec::new(),
            given: None,
            strict: true,
            exposed: false,
            lease_s: None,
            term: None,
            generation: 1,
        };
        let same = ProtectVm { on: "c".into(), interval_ms: Some(50), strict: true, auto_failover: false };
        assert_eq!(differs(&known, &same), None);
        for other in [
            ProtectVm { interval_ms: None, ..same.clone() },
            ProtectVm { strict: false, ..same.clone() },
            ProtectVm { auto_failover: true, ..same.clone() },
        ] {
            let said = differs(&known, &other).expect("it differs");
            assert!(said.contains("with --strict, without --auto-failover, --interval 50ms"), "{said}");
        }
    }
}
