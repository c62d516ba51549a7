//! The papers: every external crate has its reason in ARCHITECTURE.md, the README its two commands, the bytes their page.

use super::Complaint;

/// What the README must show as commands.
const README_COMMANDS: &[&str] = &["cargo xtask test", "cargo xtask demo"];

/// Papers that must exist.
const PAPERS: &[&str] = &["README.md", "ARCHITECTURE.md", "docs/protocol.md", "HACKING.md"];

/// Complaints about papers; `read` returns a paper's text.
pub(super) fn check(read: &dyn Fn(&str) -> Option<String>) -> Vec<Complaint> {
    let mut complaints: Vec<Complaint> = PAPERS
        .iter()
        .filter(|paper| read(paper).is_none())
        .map(|paper| Complaint::new(paper, 0, "is missing: a reader looks for it"))
        .collect();
    let text = |name| read(name).unwrap_or_default();
    complaints.extend(unexplained(&text("Cargo.toml"), &text("ARCHITECTURE.md")));
    let readme = text("README.md");
    for command in README_COMMANDS.iter().filter(|command| !readme.is_empty() && !readme.contains(*command)) {
        complaints.push(Complaint::new("README.md", 0, format!("does not show `{command}`: add it")));
    }
    complaints
}

/// External crates of the workspace that ARCHITECTURE.md does not name.
fn unexplained(manifest: &str, architecture: &str) -> Vec<Complaint> {
    let words: Vec<&str> = architecture.split(|c: char| !c.is_alphanumeric() && c != '-' && c != '_').collect();
    let lines = manifest.lines().enumerate().skip_while(|(_, line)| *line != "[workspace.dependencies]").skip(1);
    lines
        .take_while(|(_, line)| !line.starts_with('['))
        .filter_map(|(at, line)| Some((at, line.split_once('=')?.0.trim())))
        .filter(|(_, name)| !name.starts_with(['#', ' ']) && !words.contains(name))
        .map(|(at, name)| {
            Complaint::new(
                "Cargo.toml",
                at + 1,
                format!("{name} is not in ARCHITECTURE.md: say there why it is needed"),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn house(name: &str) -> Option<String> {
        let text = match name {
            "Cargo.toml" => {
                "[workspace]\nx = 1\n[workspace.dependencies]\nanyhow = \"1\"\nclap = { a = 1 }\n\n[profile.dev]\ny = 2\n"
            }
            "ARCHITECTURE.md" => "| anyhow | errors |\n| `clap` | arguments |",
            "README.md" => "cargo xtask test\ncargo xtask demo",
            _ => "",
        };
        Some(text.to_owned())
    }

    #[test]
    fn good_papers() {
        assert_eq!(check(&house), []);
    }

    #[test]
    fn a_crate_without_a_reason() {
        let found = check(&|name| match name {
            "ARCHITECTURE.md" => Some("anyhow, and clap_complete".to_owned()),
            other => house(other),
        });
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].to_string().starts_with("Cargo.toml:5: clap is not"));
    }

    #[test]
    fn missing_papers_and_commands() {
        let found = check(&|name| match name {
            "docs/protocol.md" => None,
            "README.md" => Some("cargo xtask test".to_owned()),
            other => house(other),
        });
        assert_eq!(
            found.iter().map(|found| found.file.as_str()).collect::<Vec<_>>(),
            ["docs/protocol.md", "README.md"]
        );
    }
}
