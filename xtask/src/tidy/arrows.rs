//! Dependency arrows point down. Read from `cargo metadata`, so no alias or feature hides one.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde_json::Value;

use super::Complaint;
use crate::sh;

/// Who may know whom. A crate that is not listed is a complaint: new rooms are planned first.
const ALLOWED: &[(&str, &[&str])] = &[
    ("gnomon-terms", &[]),
    ("gnomon-forecast", &["gnomon-terms"]),
    ("gnomon-cycle", &["gnomon-forecast", "gnomon-terms"]),
    ("gnomon-proto", &["gnomon-terms"]),
    ("gnomon-link", &["gnomon-proto", "gnomon-terms"]),
    ("gnomon-store", &["gnomon-proto", "gnomon-terms"]),
    ("gnomon-qemu", &["gnomon-terms"]),
    ("gnomon-volume", &["gnomon-link", "gnomon-proto", "gnomon-terms"]),
    ("gnomon-machine", &["gnomon-link", "gnomon-proto", "gnomon-qemu", "gnomon-terms"]),
    ("gnomon-memory", &["gnomon-terms"]),
    (
        "gnomon",
        &[
            "gnomon-cycle",
            "gnomon-forecast",
            "gnomon-link",
            "gnomon-machine",
            "gnomon-memory",
            "gnomon-proto",
            "gnomon-qemu",
            "gnomon-store",
            "gnomon-terms",
            "gnomon-volume",
        ],
    ),
    ("gnomon-agent", &["gnomon-proto", "gnomon-terms"]),
    // The guest accuses gnomon, so it shares nothing with it.
    ("gnomon-guest", &[]),
    ("xtask", &[]),
];

/// Crates without clock, thread, socket and file.
pub(super) const PURE: &[&str] = &["gnomon-terms", "gnomon-forecast", "gnomon-cycle", "gnomon-proto"];

/// What a pure crate must not even reach through others.
const RUNTIMES: &[&str] = &["tokio", "mio", "async-std", "smol"];

/// Our crates and what each depends on: by its manifest, and by everything that follows from it. Tests excepted.
#[derive(Debug, Default)]
pub(super) struct Graph {
    direct: BTreeMap<String, BTreeSet<String>>,
    reached: BTreeMap<String, BTreeSet<String>>,
}

/// Asks cargo.
pub(super) fn graph() -> Result<Graph> {
    let text = sh::capture(sh::cargo().args(["metadata", "--format-version", "1", "--all-features"]))?;
    parse(&serde_json::from_str(&text).context("cargo metadata is not JSON")?).context("cargo metadata lacks a part")
}

fn parse(metadata: &Value) -> Option<Graph> {
    let mut names = BTreeMap::new();
    for package in metadata["packages"].as_array()? {
        names.insert(package["id"].as_str()?, package["name"].as_str()?);
    }
    let mut edges: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for node in metadata["resolve"]["nodes"].as_array()? {
        let normal = node["deps"].as_array()?.iter().filter(|dep| is_normal(dep));
        edges.insert(node["id"].as_str()?, normal.filter_map(|dep| dep["pkg"].as_str()).collect());
    }
    let mut graph = Graph::default();
    for member in metadata["workspace_members"].as_array()? {
        let id = member.as_str()?;
        let named = |ids: &mut dyn Iterator<Item = &str>| -> BTreeSet<String> {
            ids.filter_map(|id| names.get(id)).map(|name| (*name).to_owned()).collect()
        };
        let name = (*names.get(id)?).to_owned();
        graph.direct.insert(name.clone(), named(&mut edges.get(id)?.iter().copied()));
        graph.reached.insert(name, named(&mut reach(&edges, id).into_iter()));
    }
    Some(graph)
}

fn is_normal(dep: &Value) -> bool {
    dep["dep_kinds"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind["kind"].is_null()))
}

fn reach<'a>(edges: &BTreeMap<&'a str, Vec<&'a str>>, from: &'a str) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut left = vec![from];
    while let Some(id) = left.pop() {
        left.extend(edges.get(id).into_iter().flatten().copied().filter(|id| reached.insert(*id)));
    }
    reached
}

/// Complaints about arrows.
pub(super) fn check(graph: &Graph) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for (name, direct) in &graph.direct {
        let file = manifest(name);
        let Some((_, allowed)) = ALLOWED.iter().find(|(known, _)| known == name) else {
            let text = format!("{name} has no place in the house: add it to ALLOWED in xtask/src/tidy/arrows.rs");
            complaints.push(Complaint::new(&file, 0, text));
            continue;
        };
        for below in direct.iter().filter(|below| graph.direct.contains_key(*below)) {
            if !allowed.contains(&below.as_str()) {
                let text = format!(
                    "{name} depends on {below}: arrows point down. Move what both need lower, or wire them in gnomon"
                );
                complaints.push(Complaint::new(&file, 0, text));
            }
        }
    }
    complaints.extend(PURE.iter().flat_map(|name| impure(graph, name)));
    complaints
}

fn impure(graph: &Graph, name: &str) -> Vec<Complaint> {
    let reached = graph.reached.get(name).into_iter().flatten();
    let runtimes = reached.filter(|below| RUNTIMES.contains(&below.as_str()));
    let text = |below: &String| format!("{name} reaches {below}: a pure crate has no runtime. Drop the dependency");
    runtimes.map(|below| Complaint::new(&manifest(name), 0, text(below))).collect()
}

fn manifest(name: &str) -> String {
    if name == "xtask" { "xtask/Cargo.toml".to_owned() } else { format!("crates/{name}/Cargo.toml") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A house from `(crate, its dependencies)`; `~name` is a dependency of tests only.
    fn house(rows: &[(&str, &[&str])]) -> Graph {
        let all: BTreeSet<&str> = rows
            .iter()
            .flat_map(|(name, deps)| deps.iter().chain([name]))
            .map(|name| name.trim_start_matches('~'))
            .collect();
        let packages: Vec<Value> = all.iter().map(|name| json!({"id": name, "name": name})).collect();
        let nodes: Vec<Value> = all
            .iter()
            .map(|name| {
                let deps = rows.iter().find(|(row, _)| row == name).map_or(&[][..], |(_, deps)| *deps);
                let deps: Vec<Value> = deps
                    .iter()
                    .map(|dep| match dep.strip_prefix('~') {
                        Some(dep) => json!({"pkg": dep, "dep_kinds": [{"kind": "dev"}]}),
                        None => json!({"pkg": dep, "dep_kinds": [{"kind": null}]}),
                    })
                    .collect();
                json!({"id": name, "deps": deps})
            })
            .collect();
        let members: Vec<&&str> = all.iter().filter(|name| name.contains("gnomon")).collect();
        parse(&json!({"packages": packages, "resolve": {"nodes": nodes}, "workspace_members": members})).unwrap()
    }

    #[test]
    fn arrows_down_are_fine() {
        let graph = house(&[("gnomon-cycle", &["gnomon-forecast", "gnomon-terms"]), ("gnomon-terms", &["~tokio"])]);
        assert_eq!(check(&graph), []);
    }

    #[test]
    fn arrows_up_and_strangers_are_not() {
        let graph = house(&[("gnomon-terms", &["gnomon-volume"]), ("gnomon-shed", &[])]);
        let complaints = check(&graph);
        assert_eq!(complaints.len(), 2, "{complaints:?}");
        assert!(complaints[0].text.contains("gnomon-shed") && complaints[1].text.contains("gnomon-volume"));
    }

    #[test]
    fn a_runtime_is_found_behind_others() {
        let graph = house(&[("gnomon-proto", &["innocent"]), ("innocent", &["tokio"])]);
        let complaints = check(&graph);
        assert_eq!(complaints.len(), 1);
        assert!(complaints[0].text.contains("reaches tokio"), "{complaints:?}");
    }
}
