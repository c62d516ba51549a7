//! What DIMMs are called in QEMU, and what their names say.
//!
//! ```text
//!   staged-17-9b2f61c04ad3   block 17 of the node that marks its own with 9b2f61c04ad3
//!   cold-2                   of nothing that was staged; the guest's second
//! ```
//! A guest takes its DIMMs along when it moves, with their names, which are in the state of its devices. There they are of
//! memory that was made for them, and the number of a block means another block or none: so a name says of which node's it
//! is, since which boot of its host.

use std::fs;

use gnomon_memory::BlockId;

const STAGED: &str = "staged-";
const COLD: &str = "cold-";

/// Digits of a node's mark: of 2^48, no two of one fleet are alike.
const DIGITS: usize = 12;

/// Names of one node's DIMMs.
#[derive(Debug)]
pub(super) struct DimmNames {
    mark: String,
}

impl DimmNames {
    /// Of a node, since this boot of its host: blocks are not older, and their numbers begin anew with it.
    pub(super) fn of(node: &str) -> DimmNames {
        // Where it cannot be read a block of before the boot is as one of now; the accounts know that it is nobody's.
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let digest = blake3::hash(format!("{node} {boot}").as_bytes()).to_hex();
        DimmNames { mark: digest[..DIGITS].to_string() }
    }

    /// What a DIMM of one of this node's blocks is called.
    pub(super) fn staged(&self, block: BlockId) -> String {
        format!("{STAGED}{}-{}", block.0, self.mark)
    }

    /// The block of this node that a DIMM is of.
    pub(super) fn block_of(&self, name: &str) -> Option<BlockId> {
        let (block, mark) = name.strip_prefix(STAGED)?.split_once('-')?;
        (mark == self.mark).then(|| block.parse().ok().map(BlockId)).flatten()
    }
}

/// What one that was not staged is called.
pub(super) fn cold(number: u64) -> String {
    format!("{COLD}{number}")
}

/// The number of one that was not staged.
pub(super) fn number_of(name: &str) -> Option<u64> {
    name.strip_prefix(COLD)?.parse().ok()
}

/// Whether gnomon has given it, here or at another node: then it may be asked back.
pub(super) fn is_given(name: &str) -> bool {
    name.starts_with(STAGED) || name.starts_with(COLD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_means_a_block_at_its_own_node_only() {
        let (here, there) = (DimmNames::of("a"), DimmNames::of("b"));
        let own = here.staged(BlockId(17));
        assert_eq!((here.block_of(&own), there.block_of(&own)), (Some(BlockId(17)), None), "{own}");
        for name in ["staged-17", "staged-17-", "staged--", "cold-17", ""] {
            assert_eq!(here.block_of(name), None, "{name}");
        }
        assert_eq!(here.block_of(&own.replace("17", "x")), None);
    }

    #[test]
    fn what_gnomon_gave_is_told_from_others() {
        let table = [
            ("staged-1-aabb", true, None),
            ("cold-3", true, Some(3)),
            ("cold-x", true, None),
            ("dimm0", false, None),
        ];
        for (name, given, number) in table {
            assert_eq!((is_given(name), number_of(name)), (given, number), "{name}");
        }
        assert_eq!(number_of(&cold(9)), Some(9));
    }
}
