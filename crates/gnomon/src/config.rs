//! What was typed ([`RawConfig`]) becomes what it means ([`Config`]), once.
//!
//! Every key has a default, so `gnomon serve` works without a file: root keeps its state in `/var/lib/gnomon` and
//! its sockets in `/run/gnomon`; others use their XDG folders. A key that is not known is an error, not a guess.

mod balancing;
mod forecast;
mod memory;

use std::{
    env, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use gnomon_store::{EtcdAddress, EtcdTls, OwnCertificate};
use gnomon_terms::BytesPerSecond;
use serde::Deserialize;

pub use self::{
    balancing::{Balancer, Hook, HookTo},
    forecast::{FeedConfig, FeedSource, ModelChoice},
    memory::MemoryConfig,
};
use self::{
    balancing::{RawBalancer, RawHook, balancer, hook, url_of},
    forecast::{RawFeed, RawForecast},
    memory::RawMemory,
};
use crate::names::{self, NameError};

/// A unix socket's path must fit `sockaddr_un.sun_path` (108 bytes with its closing zero), and the longest name we
/// put below `run_dir` is `/vm/<64>/<32>.sock`. A longer `run_dir` would fail late, at the first VM; so it is refused.
/// Paths of VMs are checked again when they are made, because most names are short.
const LONGEST_RUN_DIR: usize = 80;

/// The configuration file as typed.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawConfig {
    node: RawNode,
    api: RawApi,
    link: Option<RawLink>,
    peer: Vec<RawPeer>,
    store: RawStore,
    volume: RawVolume,
    forecast: RawForecast,
    memory: RawMemory,
    balancer: Vec<RawBalancer>,
    hook: Vec<RawHook>,
    feed: Vec<RawFeed>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawNode {
    name: Option<String>,
    run_dir: Option<PathBuf>,
    state_dir: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawApi {
    socket: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLink {
    listen: String,
    pki: PathBuf,
    rate: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPeer {
    name: String,
    address: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawStore {
    shared: Option<String>,
    lease: Option<u64>,
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawVolume {
    dir: Option<PathBuf>,
    nbd_socket: Option<PathBuf>,
    nbd_tcp: Option<String>,
    nbd_pki: Option<PathBuf>,
}

/// What the daemon was told to be.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node's name.
    pub node: String,
    /// Sockets and process ids live here; may be emptied at boot.
    pub run_dir: PathBuf,
    /// Facts that must survive a boot live here.
    pub state_dir: PathBuf,
    /// The API's unix socket.
    pub socket: PathBuf,
    /// The link to other nodes; `None`: this node stands alone.
    pub link: Option<LinkConfig>,
    /// Other nodes this one may talk to.
    pub peers: Vec<Peer>,
    /// The store that other nodes see too; `None`: what they must agree on is agreed on by hand.
    pub shared_store: Option<EtcdAddress>,
    /// The files with which its members are spoken to over TLS; `None`: in the clear.
    #[cfg_attr(not(feature = "etcd"), expect(dead_code, reason = "there is no etcd to use it for"))]
    pub shared_tls: Option<EtcdTls>,
    /// How long a node that is silent at that store keeps the VMs that it holds.
    pub lease: Duration,
    /// Where volumes' files are.
    pub volume_dir: PathBuf,
    /// Where guests of this host find their disks.
    pub nbd_socket: PathBuf,
    /// Where others find them, over TLS.
    pub nbd_tcp: Option<NbdTcp>,
    /// Whether the volumes' networks go on learning while guests run.
    pub learn: bool,
    /// The network with which they begin.
    pub model: ModelChoice,
    /// What is staged for guests to come.
    pub memory: MemoryConfig,
    /// Load balancers that send connections to its VMs.
    pub balancers: Vec<Balancer>,
    /// Who hears of what is done to its VMs.
    pub hooks: Vec<Hook>,
    /// What the world outside says.
    pub feeds: Vec<FeedConfig>,
}

/// How other nodes reach this one.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// Address and port to listen on.
    pub listen: SocketAddr,
    /// The folder that `gnomon node init` made.
    pub pki: PathBuf,
    /// The most that moves may use; `None`: no limit.
    pub rate: Option<BytesPerSecond>,
}

/// Another node.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its name, which its certificate must carry.
    pub name: String,
    /// `host:port`, resolved when it is dialled.
    pub address: String,
}

/// NBD over TCP, always with TLS and client certificates.
#[derive(Clone, Debug)]
pub struct NbdTcp {
    /// Address and port to listen on.
    pub listen: SocketAddr,
    /// The folder that `gnomon node init` made.
    pub pki: PathBuf,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not TOML, or a key is unknown, missing or of the wrong type.
    #[error("the configuration {path} is not understood: {source}")]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// A value has no meaning.
    #[error("{key} = \"{value}\" has no meaning: {write}")]
    Value {
        /// Section and key.
        key: &'static str,
        /// What was written.
        value: String,
        /// What to write instead.
        write: String,
    },
    /// Neither the file nor the environment says where to keep things.
    #[error("no place to keep {what}: set {key} in the configuration, or HOME in the environment")]
    NoHome {
        /// What has no place.
        what: &'static str,
        /// Which key would say.
        key: &'static str,
    },
}

impl Config {
    /// Reads `file`; without one, everything has its default.
    pub fn load(file: Option<&Path>) -> Result<Config, ConfigError> {
        let raw = match file {
            Some(path) => read_raw(path)?,
            None => RawConfig::default(),
        };
        Config::from_raw(raw, &Homes::of_process())
    }

    fn from_raw(raw: RawConfig, homes: &Homes) -> Result<Config, ConfigError> {
        let node = raw.node.name.unwrap_or_else(host_name);
        name("node.name", &node)?;
        let run_dir = raw.node.run_dir.or_else(|| homes.run_dir()).ok_or(no_home("sockets", "node.run_dir"))?;
        let state_dir = raw.node.state_dir.or_else(|| homes.state_dir()).ok_or(no_home("state", "node.state_dir"))?;
        fits_a_socket("node.run_dir", &run_dir)?;
        Ok(Config {
            node,
            socket: raw.api.socket.unwrap_or_else(|| run_dir.join(SOCKET_NAME)),
            link: raw.link.map(link).transpose()?,
            peers: raw.peer.into_iter().map(peer).collect::<Result<_, _>>()?,
            lease: lease(raw.store.lease)?,
            shared_tls: shared_tls(raw.store.ca, raw.store.certificate, raw.store.key)?,
            shared_store: raw.store.shared.map(|text| shared_store(&text)).transpose()?,
            volume_dir: raw.volume.dir.unwrap_or_else(|| state_dir.join("volumes")),
            nbd_socket: raw.volume.nbd_socket.unwrap_or_else(|| run_dir.join("nbd.sock")),
            nbd_tcp: nbd_tcp(raw.volume.nbd_tcp, raw.volume.nbd_pki)?,
            learn: raw.forecast.learn,
            model: ModelChoice::of(raw.forecast.model),
            memory: raw.memory.mean()?,
            balancers: raw.balancer.into_iter().map(balancer).collect::<Result<_, _>>()?,
            hooks: raw.hook.into_iter().map(hook).collect::<Result<_, _>>()?,
            feeds: forecast::feeds(raw.feed)?,
            run_dir,
            state_dir,
        })
    }
}

impl Config {
    /// Where the link listens; empty without one.
    pub fn link_address(&self) -> String {
        self.link.as_ref().map(|link| link.listen.to_string()).unwrap_or_default()
    }
}

/// The API socket's name below `run_dir`.
const SOCKET_NAME: &str = "gnomon.sock";

/// Where a client looks for the daemon when it was not told.
pub fn default_socket() -> Option<PathBuf> {
    Homes::of_process().run_dir().map(|dir| dir.join(SOCKET_NAME))
}

/// What of the environment decides the default folders.
#[derive(Clone, Debug, Default)]
struct Homes {
    root: bool,
    home: Option<PathBuf>,
    runtime: Option<PathBuf>,
    state: Option<PathBuf>,
}

impl Homes {
    fn of_process() -> Homes {
        let dir = |key| env::var_os(key).map(PathBuf::from).filter(|path| path.is_absolute());
        Homes {
            root: rustix::process::geteuid().is_root(),
            home: dir("HOME"),
            runtime: dir("XDG_RUNTIME_DIR"),
            state: dir("XDG_STATE_HOME"),
        }
    }

    fn run_dir(&self) -> Option<PathBuf> {
        match (self.root, &self.runtime) {
            (true, _) => Some("/run/gnomon".into()),
            (false, Some(runtime)) => Some(runtime.join("gnomon")),
            (false, None) => self.state_dir().map(|dir| dir.join("run")),
        }
    }

    fn state_dir(&self) -> Option<PathBuf> {
        match (self.root, &self.state, &self.home) {
            (true, ..) => Some("/var/lib/gnomon".into()),
            (false, Some(state), _) => Some(state.join("gnomon")),
            (false, None, Some(home)) => Some(home.join(".local/state/gnomon")),
            (false, None, None) => None,
        }
    }
}

fn read_raw(path: &Path) -> Result<RawConfig, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Unreadable { path: path.to_path_buf(), source })?;
    toml::from_str(&text).map_err(|source| ConfigError::Syntax { path: path.to_path_buf(), source: Box::new(source) })
}

fn host_name() -> String {
    let uname = rustix::system::uname();
    names::made_from(&uname.nodename().to_string_lossy())
}

fn link(raw: RawLink) -> Result<LinkConfig, ConfigError> {
    let rate = raw.rate.map(|text| rate("link.rate", &text)).transpose()?;
    Ok(LinkConfig { listen: listen_address("link.listen", &raw.listen)?, pki: raw.pki, rate })
}

fn peer(raw: RawPeer) -> Result<Peer, ConfigError> {
    name("peer.name", &raw.name)?;
    host_and_port("peer.address", &raw.address)?;
    Ok(Peer { name: raw.name, address: raw.address })
}

fn host_and_port(key: &'static str, text: &str) -> Result<(), ConfigError> {
    let has_port = text
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0));
    match has_port {
        true => Ok(()),
        false => Err(value(key, text, "write host:port, such as \"10.0.0.2:7400\"")),
    }
}

/// Seconds that a lease may last: etcd grants none that is shorter than an election of its own takes, and after a minute
/// somebody has come by hand.
const LEASES_S: std::ops::RangeInclusive<u64> = 2..=60;

fn lease(seconds: Option<u64>) -> Result<Duration, ConfigError> {
    match seconds {
        None => Ok(gnomon_store::guarding::DEFAULT_TTL),
        Some(seconds) if LEASES_S.contains(&seconds) => Ok(Duration::from_secs(seconds)),
        Some(seconds) => Err(value("store.lease", &seconds.to_string(), "write seconds, from 2 to 60")),
    }
}

fn shared_store(text: &str) -> Result<EtcdAddress, ConfigError> {
    text.parse().map_err(|_| value("store.shared", text, "write etcd://HOST:PORT[,HOST:PORT...][/NAMESPACE]"))
}

fn shared_tls(
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
) -> Result<Option<EtcdTls>, ConfigError> {
    let shown = |path: &PathBuf| path.display().to_string();
    match (ca, certificate, key) {
        (None, None, None) => Ok(None),
        (Some(ca), None, None) => Ok(Some(EtcdTls { ca, own: None })),
        (Some(ca), Some(certificate), Some(key)) => {
            Ok(Some(EtcdTls { ca, own: Some(OwnCertificate { certificate, key }) }))
        }
        (None, Some(path), _) | (None, None, Some(path)) => {
            Err(value("store.ca", &shown(&path), "give store.ca as well: whom the etcd's certificates are issued by"))
        }
        (Some(_), Some(path), None) | (Some(_), None, Some(path)) => Err(value(
            "store.certificate",
            &shown(&path),
            "a certificate and its key go together: give both, or none",
        )),
    }
}

fn nbd_tcp(listen: Option<String>, pki: Option<PathBuf>) -> Result<Option<NbdTcp>, ConfigError> {
    let Some(listen) = listen else { return Ok(None) };
    let address = listen_address("volume.nbd_tcp", &listen)?;
    match pki {
        Some(pki) => Ok(Some(NbdTcp { listen: address, pki })),
        None => Err(value(
            "volume.nbd_tcp",
            &listen,
            "disks are not offered over TCP without TLS: set volume.nbd_pki to the folder that `gnomon node init` made",
        )),
    }
}

fn name(key: &'static str, text: &str) -> Result<(), ConfigError> {
    names::check(text).map_err(|NameError { expected, .. }| value(key, text, expected))
}

fn listen_address(key: &'static str, text: &str) -> Result<SocketAddr, ConfigError> {
    text.parse().map_err(|_| value(key, text, "write address:port, such as \"0.0.0.0:7400\" or \"[::]:7400\""))
}

fn rate(key: &'static str, text: &str) -> Result<BytesPerSecond, ConfigError> {
    let rate: BytesPerSecond =
        text.parse().map_err(|error: gnomon_terms::ParseUnitError| value(key, text, error.expected))?;
    match rate.0 {
        0 => Err(value(key, text, "a rate of zero would stop every move: leave the key out for no limit")),
        _ => Ok(rate),
    }
}

fn fits_a_socket(key: &'static str, dir: &Path) -> Result<(), ConfigError> {
    let text = dir.to_string_lossy();
    match text.len() <= LONGEST_RUN_DIR {
        true => Ok(()),
        false => Err(value(key, &text, "unix sockets go there and their paths are short: write 80 bytes at most")),
    }
}

fn value(key: &'static str, value: &str, write: impl Into<String>) -> ConfigError {
    ConfigError::Value { key, value: value.to_string(), write: write.into() }
}

fn no_home(what: &'static str, key: &'static str) -> ConfigError {
    ConfigError::NoHome { what, key }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let raw: RawConfig = toml::from_str(text).map_err(|error| error.to_string())?;
        let homes = Homes { home: Some("/home/ann".into()), ..Homes::default() };
        Config::from_raw(raw, &homes).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_is_a_whole_configuration() {
        let config = parse("").expect("defaults");
        assert_eq!(config.state_dir, Path::new("/home/ann/.local/state/gnomon"));
        assert_eq!(config.socket, Path::new("/home/ann/.local/state/gnomon/run/gnomon.sock"));
        assert_eq!(config.volume_dir, config.state_dir.join("volumes"));
        assert!(config.link.is_none() && config.peers.is_empty() && config.nbd_tcp.is_none());
    }

    #[test]
    fn each_folder_follows_the_one_above_it() {
        let config = parse("[node]\nname='a'\nrun_dir='/r'\nstate_dir='/s'").expect("config");
        assert_eq!(config.socket, Path::new("/r/gnomon.sock"));
        assert_eq!(config.nbd_socket, Path::new("/r/nbd.sock"));
        assert_eq!(config.volume_dir, Path::new("/s/volumes"));
    }

    #[test]
    fn root_has_the_usual_places() {
        let root = Homes { root: true, ..Homes::default() };
        assert_eq!(root.run_dir(), Some("/run/gnomon".into()));
        assert_eq!(root.state_dir(), Some("/var/lib/gnomon".into()));
        assert_eq!(Homes::default().state_dir(), None);
    }

    const BALANCER_WITHOUT_PORT: &str = "[[balancer]]\nvm='w'\nhaproxy='/h'\nserver='web/vm'\naddress={b='10.0.0.2'}";

    #[test]
    fn a_hook_is_an_address_or_a_program() {
        let config = parse("[[hook]]\nurl='http://ops:9/x'\n[[hook]]\nvm='w'\ncommand='/bin/told'").expect("config");
        assert_eq!(config.hooks[0].to, HookTo::Url { host: "ops:9".to_string(), path: "/x".to_string() });
        assert_eq!(config.hooks[1].to, HookTo::Command("/bin/told".into()));
        assert!(config.hooks[0].hears_of("any") && config.hooks[1].hears_of("w") && !config.hooks[1].hears_of("any"));
        let plain = parse("[[hook]]\nurl='http://ops'").expect("config");
        assert_eq!(plain.hooks[0].to, HookTo::Url { host: "ops:80".to_string(), path: "/".to_string() });
    }

    #[test]
    fn a_wrong_value_is_named_with_what_to_write() {
        let table = [
            ("[node]\nname='../x'", "node.name = \"../x\"", "letters"),
            ("[link]\nlisten='here'\npki='/p'", "link.listen = \"here\"", "address:port"),
            ("[link]\nlisten='0.0.0.0:1'\npki='/p'\nrate='fast'", "link.rate = \"fast\"", "400mbit"),
            ("[link]\nlisten='0.0.0.0:1'\npki='/p'\nrate='0'", "link.rate = \"0\"", "leave the key out"),
            ("[[peer]]\nname='b'\naddress='10.0.0.2'", "peer.address = \"10.0.0.2\"", "host:port"),
            ("[store]\nlease=1", "store.lease = \"1\"", "from 2 to 60"),
            ("[store]\nshared='10.0.0.2:2379'", "store.shared = \"10.0.0.2:2379\"", "etcd://HOST:PORT"),
            ("[store]\nkey='/k'\ncertificate='/c'", "store.ca", "issued by"),
            ("[store]\nca='/a'\nkey='/k'", "store.certificate = \"/k\"", "give both, or none"),
            ("[volume]\nnbd_tcp='0.0.0.0:10809'", "volume.nbd_tcp", "volume.nbd_pki"),
            (BALANCER_WITHOUT_PORT, "balancer.address = \"10.0.0.2\"", "host:port"),
            ("[[balancer]]\nvm='w'\nhaproxy='/h'\nserver='web/a b'\naddress={}", "balancer.server", "BACKEND/SERVER"),
            ("[[hook]]\nurl='https://x/y'", "hook.url = \"https://x/y\"", "command"),
            ("[[hook]]\nvm='w'", "hook.url", "either a url or a command"),
            ("[volume]\ndirectory='/x'", "unknown field `directory`", "dir"),
        ];
        for (text, names, advises) in table {
            let error = parse(text).expect_err(text);
            assert!(error.contains(names) && error.contains(advises), "{text}: {error}");
        }
    }
}
