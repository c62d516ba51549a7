//! Files that are written whole or not at all.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// A path with something at its end: `disk.raw` and `.new` are `disk.raw.new`.
pub fn with(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// Has these parts as a file's content: written beside it (`.new`), synced, renamed over it, and the folder synced. Durable when
/// it returns; after an error the file is as it was.
pub fn replace(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let new = with(path, ".new");
    let mut file = File::create(&new)?;
    let written = parts.iter().try_for_each(|part| file.write_all(part));
    written.and_then(|()| file.sync_all()).and_then(|()| fs::rename(&new, path)).inspect_err(|_| {
        // What is half written is of no use; if it cannot go either, the next writing takes its place.
        let _ = fs::remove_file(&new);
    })?;
    // A name alone is in the folder where we are.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_stays_when_that_fails() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("facts");
        for parts in [&[&b"one"[..]][..], &[b"two", b" and ", b"three"]] {
            replace(&path, parts).expect("written");
            assert_eq!(fs::read(&path).expect("there"), parts.concat());
        }
        // In the way of what is written beside it.
        fs::create_dir(with(&path, ".new")).expect("a folder");
        assert!(replace(&path, &[b"four"]).is_err());
        assert_eq!(fs::read(&path).expect("there"), b"two and three");
    }
}
