//! How many descriptors this process may have: every block that is not back at the host is one.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Raises the limit of open descriptors as far as this process may, and says how many it may have now. The first limit
/// is for programs that use select(2), of which there is none here. Source: getrlimit(2).
pub(crate) fn raise_limit() -> u64 {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // What cannot be raised is not: then there is room for fewer.
    let _ = setrlimit(Resource::Nofile, limit);
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_as_high_as_it_may_be() {
        let raised = raise_limit();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
        assert_eq!(raised, limit.maximum.unwrap_or(u64::MAX));
    }
}
