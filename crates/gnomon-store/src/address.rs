//! Where a store on other machines is: `etcd://HOST:PORT[,HOST:PORT…][/NAMESPACE]`.

use std::{fmt, str::FromStr};

use gnomon_terms::ErrorKind;

/// What our keys are put below when nothing else is said, so that they stand apart in an etcd that others use too.
const DEFAULT_NAMESPACE: &str = "gnomon";

/// More members than any etcd has: its papers advise seven at most.
const MOST_MEMBERS: usize = 16;

/// The address of an etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdAddress {
    members: Vec<String>,
    namespace: String,
}

/// What was written is no address of a store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{written}' is no address of a store ({wrong}): write etcd://HOST:PORT[,HOST:PORT...][/NAMESPACE]")]
pub struct AddressError {
    written: String,
    wrong: &'static str,
}

impl AddressError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Refused
    }
}

impl EtcdAddress {
    /// Its members, `host:port` each; at least one.
    pub fn members(&self) -> &[String] {
        &self.members
    }

    /// What our keys are below, without slashes at its ends.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }
}

impl FromStr for EtcdAddress {
    type Err = AddressError;

    fn from_str(written: &str) -> Result<EtcdAddress, AddressError> {
        let wrong = |wrong| AddressError { written: written.to_string(), wrong };
        let rest = written.strip_prefix("etcd://").ok_or(wrong("it does not begin with etcd://"))?;
        let (members, namespace) = rest.split_once('/').unwrap_or((rest, DEFAULT_NAMESPACE));
        let members: Vec<String> = members.split(',').map(str::to_string).collect();
        if !members.iter().all(|member| has_port(member)) {
            return Err(wrong("a member needs a host and a port, such as 10.0.0.2:2379"));
        }
        if members.len() > MOST_MEMBERS {
            return Err(wrong("it has more than 16 members"));
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
        let namespace = namespace.trim_matches('/');
        if namespace.is_empty() || namespace.len() > 64 || !namespace.chars().all(plain) {
            return Err(wrong("a namespace has 1 to 64 letters, digits, or any of -_./"));
        }
        Ok(EtcdAddress { members, namespace: namespace.to_string() })
    }
}

impl fmt::Display for EtcdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "etcd://{}/{}", self.members.join(","), self.namespace)
    }
}

/// `host:port`, where a host with colons is in brackets.
fn has_port(member: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let host_is_sound = |host: &str| match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(plain),
    };
    member
        .rsplit_once(':')
        .is_some_and(|(host, port)| host_is_sound(host) && port.parse::<u16>().is_ok_and(|port| port != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        type Row = (&'static str, Option<(&'static [&'static str], &'static str)>);
        let table: &[Row] = &[
            ("etcd://a:2379", Some((&["a:2379"], "gnomon"))),
            ("etcd://10.0.0.1:2379,b.lan:2380/site-a", Some((&["10.0.0.1:2379", "b.lan:2380"], "site-a"))),
            ("etcd://[::1]:2379/a/b/", Some((&["[::1]:2379"], "a/b"))),
            ("a:2379", None),
            ("etcd://a", None),
            ("etcd://", None),
            ("etcd://a:0", None),
            ("etcd://a:99999", None),
            ("etcd://a:1,", None),
            ("etcd://a b:1", None),
            ("etcd://::1:2379", None),
            ("etcd://a:1/", None),
            ("etcd://a:1/b?c", None),
            ("http://a:1", None),
        ];
        for (written, expected) in table {
            let parsed = written.parse::<EtcdAddress>();
            let seen =
                parsed.as_ref().ok().map(|address| (address.members().to_vec(), address.namespace().to_string()));
            let expected = expected.map(|(members, namespace)| {
                (members.iter().map(|member| member.to_string()).collect(), namespace.to_string())
            });
            assert_eq!(seen, expected, "{written}");
        }
    }

    #[test]
    fn an_address_is_shown_as_it_is_written() {
        let address: EtcdAddress = "etcd://a:1,b:2/n".parse().expect("address");
        assert_eq!(address.to_string(), "etcd://a:1,b:2/n");
        let error = "redis://a:1".parse::<EtcdAddress>().expect_err("no etcd").to_string();
        assert!(error.contains("redis://a:1") && error.contains("etcd://HOST:PORT"), "{error}");
    }
}
