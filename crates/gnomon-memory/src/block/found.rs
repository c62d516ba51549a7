//! Blocks found again by their names, through a process that has them open.

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use gnomon_terms::Bytes;
use rustix::fs::{SealFlags, fcntl_get_seals, fstatfs};

use super::{Block, BlockError, BlockId, NAME_PREFIX, SEALS, is_size};
use crate::groups::{GroupName, PageKind};

/// The file system of memfds with large pages. Source: linux/magic.h, `HUGETLBFS_MAGIC`.
const HUGETLBFS: u64 = 0x9584_58f6;

/// What the links of memfds in `/proc/PID/fd` look like: `/memfd:NAME (deleted)`.
const LINK: (&str, &str) = ("/memfd:", " (deleted)");

/// The blocks that a process has open, each once, by their ids. Blocks that are called so and are not made like one are
/// logged and left out. The caller has made sure that `pid` still is the process it means.
pub fn blocks_of(pid: i32) -> Result<Vec<Block>, BlockError> {
    let dir = PathBuf::from(format!("/proc/{pid}/fd"));
    let look = |source| BlockError::Look { path: dir.clone(), source };
    let (mut blocks, mut seen) = (Vec::new(), HashSet::new());
    for entry in fs::read_dir(&dir).map_err(look)? {
        let path = entry.map_err(look)?.path();
        match open_fd(&path) {
            Ok(Some(block)) if seen.insert(block.inode()) => blocks.push(block),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "a block is left alone"),
        }
    }
    blocks.sort_by_key(Block::id);
    Ok(blocks)
}

/// Opens the block that a link in `/proc/PID/fd` stands for; `None` when it is none, or is gone meanwhile.
pub(crate) fn open_fd(path: &Path) -> Result<Option<Block>, BlockError> {
    let Some((group, id)) = fs::read_link(path).ok().as_deref().and_then(named) else { return Ok(None) };
    let file = match File::options().read(true).write(true).open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|source| BlockError::Look { path: path.to_path_buf(), source })?,
    };
    checked(file, group, id, path).map(Some)
}

fn checked(file: File, group: GroupName, id: BlockId, path: &Path) -> Result<Block, BlockError> {
    let strange = |why| BlockError::Strange { path: path.to_path_buf(), why };
    let metadata = file.metadata().map_err(|source| BlockError::Look { path: path.to_path_buf(), source })?;
    let seals = fcntl_get_seals(&file).unwrap_or(SealFlags::empty());
    if !seals.contains(SEALS) {
        return Err(strange("can change its size"));
    }
    let pages = match fstatfs(&file) {
        Ok(stat) if stat.f_type as u64 == HUGETLBFS => PageKind::Huge,
        Ok(_) => PageKind::Small,
        Err(e) => return Err(BlockError::Look { path: path.to_path_buf(), source: e.into() }),
    };
    let size = Bytes(metadata.len());
    if !is_size(size, pages) {
        return Err(strange("has a size that no block has"));
    }
    Ok(Block { inode: metadata.ino(), file, group, id, size, pages })
}

/// Group and id of a block from the link of its descriptor.
fn named(link: &Path) -> Option<(GroupName, BlockId)> {
    let name = link.to_str()?.strip_prefix(LINK.0)?.strip_suffix(LINK.1)?;
    let (group, id) = name.strip_prefix(NAME_PREFIX)?.rsplit_once(':')?;
    let plain = id.bytes().all(|c| c.is_ascii_digit());
    let id = plain.then(|| id.parse().ok()).flatten()?;
    Some((GroupName::new(group).ok()?, BlockId(id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_blocks_are_told_from_others() {
        let table = [
            ("/memfd:gnomon-block:web:17 (deleted)", Some(("web", 17))),
            ("/memfd:gnomon-block:a.b_c-d:0 (deleted)", Some(("a.b_c-d", 0))),
            ("/memfd:gnomon-block:web:18446744073709551615 (deleted)", Some(("web", u64::MAX))),
            ("/memfd:gnomon-block:web:18446744073709551616 (deleted)", None),
            ("/memfd:gnomon-block:web:+1 (deleted)", None),
            ("/memfd:gnomon-block:web: (deleted)", None),
            ("/memfd:gnomon-block:a:b:1 (deleted)", None),
            ("/memfd:gnomon-block::1 (deleted)", None),
            ("/memfd:gnomon-block:web:1", None),
            ("/tmp/memfd:gnomon-block:web:1 (deleted)", None),
            ("/memfd:ram0 (deleted)", None),
            ("socket:[12]", None),
        ];
        for (link, expected) in table {
            let found = named(Path::new(link));
            let found = found.as_ref().map(|(group, id)| (group.as_str(), id.0));
            assert_eq!(found, expected, "{link}");
        }
    }
}
