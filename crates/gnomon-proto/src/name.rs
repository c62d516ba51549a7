//! What may be a node's name.

/// The longest label of a DNS name. Source: RFC 1035, section 2.3.4.
const MAX_LABEL: usize = 63;
/// The longest DNS name in its text form. Source: RFC 1035, section 2.3.4 (255 octets on the wire).
const MAX_NAME: usize = 253;

/// True if `name` can name a node: a DNS name in lower case (letters, digits, `-` within labels, labels joined
/// by `.`), because it stands in the node's certificate as one.
pub fn is_node_name(name: &str) -> bool {
    name.len() <= MAX_NAME && name.split('.').all(is_label) && !is_numeric(name)
}

/// One label: 1–63 letters, digits and inner hyphens.
fn is_label(label: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=MAX_LABEL).contains(&label.len())
        && label.bytes().all(inner)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// True for what would be read as an IPv4 address and not as a name.
fn is_numeric(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_names() {
        for good in ["a", "node-1", "rack1.row2.example", "n0", "1a"] {
            assert!(is_node_name(good), "{good}");
        }
        let long = "x".repeat(64);
        for bad in ["", ".", "a.", "-a", "a-", "A", "a_b", "a b", "10.0.0.1", "7", "ä", long.as_str()] {
            assert!(!is_node_name(bad), "{bad}");
        }
        assert!(!is_node_name(&vec!["abc"; 64].join(".")));
    }
}
