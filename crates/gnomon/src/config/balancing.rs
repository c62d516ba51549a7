//! `[[balancer]]` and `[[hook]]`: who is told where a VM is.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;

use super::{ConfigError, host_and_port, name, value};

/// As typed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawBalancer {
    vm: String,
    haproxy: String,
    server: String,
    address: BTreeMap<String, String>,
}

/// As typed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHook {
    vm: Option<String>,
    url: Option<String>,
    command: Option<PathBuf>,
}

/// A target of a load balancer that is a VM.
#[derive(Clone, Debug)]
pub struct Balancer {
    /// The VM.
    pub vm: String,
    /// HAProxy's admin socket: an absolute path, or host:port.
    pub haproxy: String,
    /// The target, `backend/server`.
    pub server: String,
    /// Where the VM answers, `host:port` by node.
    pub address: BTreeMap<String, String>,
}

/// Who hears of events.
#[derive(Clone, Debug)]
pub struct Hook {
    vm: Option<String>,
    /// How it is told.
    pub to: HookTo,
}

/// How a hook is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HookTo {
    /// A program with the event on its standard input.
    Command(PathBuf),
    /// `POST http://HOST/PATH`.
    Url {
        /// host:port
        host: String,
        /// From its first slash on.
        path: String,
    },
}

impl Hook {
    /// Whether it hears of events of this VM.
    pub fn hears_of(&self, vm: &str) -> bool {
        self.vm.as_deref().is_none_or(|only| only == vm)
    }
}

pub(super) fn balancer(raw: RawBalancer) -> Result<Balancer, ConfigError> {
    name("balancer.vm", &raw.vm)?;
    if !raw.haproxy.starts_with('/') {
        host_and_port("balancer.haproxy", &raw.haproxy)?;
    }
    // It becomes part of a command line of HAProxy's: no spaces, no second command.
    let is_word =
        |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:".contains(c));
    if !raw.server.split_once('/').is_some_and(|(backend, server)| is_word(backend) && is_word(server)) {
        return Err(value("balancer.server", &raw.server, "write BACKEND/SERVER as HAProxy knows them"));
    }
    for (node, address) in &raw.address {
        name("balancer.address", node)?;
        host_and_port("balancer.address", address)?;
    }
    let RawBalancer { vm, haproxy, server, address } = raw;
    Ok(Balancer { vm, haproxy, server, address })
}

pub(super) fn hook(raw: RawHook) -> Result<Hook, ConfigError> {
    if let Some(vm) = &raw.vm {
        name("hook.vm", vm)?;
    }
    let to = match (raw.url, raw.command) {
        (Some(url), None) => {
            let (host, path) = url_of("hook.url", &url)?;
            HookTo::Url { host, path }
        }
        (None, Some(program)) => HookTo::Command(program),
        (url, _) => {
            return Err(value("hook.url", &url.unwrap_or_default(), "a hook has either a url or a command"));
        }
    };
    Ok(Hook { vm: raw.vm, to })
}

/// Host with port, and path, of an address.
pub(super) fn url_of(key: &'static str, url: &str) -> Result<(String, String), ConfigError> {
    let wrong = || value(key, url, "write http://HOST:PORT/PATH; for anything else let a command do it");
    let rest = url.strip_prefix("http://").ok_or_else(wrong)?;
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = if host.contains(':') { host.to_string() } else { format!("{host}:80") };
    host_and_port(key, &host).map_err(|_| wrong())?;
    let path = if path.is_empty() { "/" } else { path };
    match path.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok((host, path.to_string())),
        false => Err(wrong()),
    }
}
