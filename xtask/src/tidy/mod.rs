//! `tidy`: what a compiler does not see. Every complaint says where, what, why, and how to mend it.

mod arrows;
mod papers;
mod sources;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};

use crate::{Ended, sh};

/// Something that is not as the house wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// The file, relative to the checkout.
    pub file: String,
    /// The line, from 1; 0 when the file as a whole is meant.
    pub line: usize,
    /// What, why and how to mend it.
    pub text: String,
}

impl Complaint {
    fn new(file: &str, line: usize, text: impl Into<String>) -> Complaint {
        Complaint { file: file.to_owned(), line, text: text.into() }
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line.max(1), self.text)
    }
}

/// `cargo xtask tidy`
pub fn run() -> Ended {
    all()?;
    Ok(ExitCode::SUCCESS)
}

/// All checks; fails when there is a complaint.
pub fn all() -> Result<()> {
    let root = sh::root();
    let mut complaints = arrows::check(&arrows::graph()?);
    for path in rust_files(&root)? {
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.strip_prefix(&root).unwrap_or(&path).to_string_lossy().into_owned();
        complaints.extend(sources::check(&name, &text));
    }
    complaints.extend(papers::check(&|name| fs::read_to_string(root.join(name)).ok()));
    for complaint in &complaints {
        println!("{complaint}");
    }
    match complaints.len() {
        0 => Ok(()),
        count => bail!("{count} complaints"),
    }
}

fn rust_files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![root.join("crates"), root.join("xtask")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}
