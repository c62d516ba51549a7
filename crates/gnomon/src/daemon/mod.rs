//! The daemon: the one place where the parts are wired together.
//!
//! `run` brings back what is on record (volumes, VMs, moves), opens the doors (NBD, API, link), and waits to be told
//! to stop. Guests and their QEMUs go on without it.

mod agent;
mod balancing;
pub mod cards;
mod cold_start;
pub mod console;
mod feeds;
pub mod forecasts;
pub mod importing;
pub mod jobs;
pub mod keeper;
pub mod learned;
pub mod memory;
pub mod moving;
pub mod protecting;
pub mod records;
pub mod serve_file;
pub mod shared;
pub mod teacher;
mod tls;
pub mod updating;
pub mod vitals;
pub mod vms;
pub mod watcher;
mod web;

use std::{
    collections::BTreeMap,
    fs::File,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use gnomon_link::{Identity, Listener, Options, Session};
use gnomon_store::{RedbStore, Store};
use gnomon_volume::front::nbd::{NbdAddress, NbdServer, TlsMode};
use rustix::fs::{FlockOperation, flock};
use tokio::net::TcpStream;

use self::{
    balancing::Balancing,
    feeds::Feeds,
    jobs::Jobs,
    keeper::Keeper,
    memory::Memory,
    moving::Moves,
    protecting::{Protections, Shadows},
    records::Records,
    shared::Shared,
    teacher::Learning,
    updating::Updates,
    vitals::Vitals,
    vms::Vms,
};
use crate::{
    api::{
        self, ApiError,
        types::{EventView, NodeView, PeerView},
    },
    config::Config,
};

/// Everything the daemon has. Shared by the API and the moves.
pub struct Daemon {
    /// What it was told to be.
    pub config: Config,
    /// What it must know again.
    pub records: Arc<Records>,
    /// Its volumes.
    pub keeper: Arc<Keeper>,
    /// Its VMs.
    pub vms: Arc<Vms>,
    /// Memory that is ready for them.
    pub memory: Memory,
    /// Its long work.
    pub jobs: Jobs,
    /// The moves it takes part in.
    pub moves: Moves,
    /// How its VMs usually are.
    pub vitals: Arc<Vitals>,
    /// Updates that wait for somebody.
    pub updates: Updates,
    /// What the world outside says.
    pub feeds: Feeds,
    /// Who is told where its VMs are.
    pub balancing: Balancing,
    /// VMs of this node that have a shadow elsewhere.
    pub protections: Protections,
    /// Shadows of VMs of other nodes.
    pub shadows: Shadows,
    identity: Option<Identity>,
    shared: Option<Shared>,
    started: Instant,
}

/// Runs until SIGINT or SIGTERM.
pub async fn run(config: Config) -> Result<(), ApiError> {
    std::fs::create_dir_all(&config.run_dir)?;
    std::fs::create_dir_all(&config.state_dir)?;
    let _lock = lock(&config.state_dir)?;
    let daemon = tokio::task::spawn_blocking(move || Daemon::open(config)).await.map_err(ApiError::internal)??;
    let lost = protecting::ask_first(&daemon).await?;
    let nbd = open_nbd(&daemon)?;
    let vms = Arc::clone(&daemon.vms);
    tokio::task::spawn_blocking(move || vms.find_again()).await.map_err(ApiError::internal)??;
    let landing = Arc::clone(&daemon);
    tokio::task::spawn_blocking(move || moving::landing::resume(&landing)).await.map_err(ApiError::internal)??;
    protecting::open(&daemon, lost).await?;
    let vms = Arc::clone(&daemon.vms);
    tokio::task::spawn_blocking(move || vms.resume_interrupted());
    let api = api::bind(&daemon.config.socket)?;
    let link = open_link(&daemon).await?;
    say_where(&daemon);
    moving::resume(&daemon)?;
    protecting::resume(&daemon)?;
    memory::start(&daemon)?;
    tokio::select! {
        ended = api::serve(api, Arc::clone(&daemon)) => ended?,
        () = accept_all(link, &daemon) => {}
        () = learned::keep(&daemon.keeper) => {}
        () = daemon.feeds.run() => {}
        told = serve_file::until_told_to_stop() => told?,
    }
    tracing::info!("stopping; guests go on and are found again");
    protecting::rest(&daemon).await;
    learned::keep_now(&daemon.keeper).await;
    if daemon.shared.is_some() {
        let leaving = Arc::clone(&daemon);
        let left = move || leaving.shared.iter().for_each(Shared::leave);
        tokio::task::spawn_blocking(left).await.map_err(ApiError::internal)?;
    }
    for server in nbd {
        tokio::task::spawn_blocking(move || server.stop()).await.map_err(ApiError::internal)?;
    }
    // The socket's end tells clients that nobody answers; one that is left over would be replaced anyway.
    let _ = std::fs::remove_file(&daemon.config.socket);
    Ok(())
}

impl Daemon {
    /// Knows everything on record. No door is open yet. Blocks.
    fn open(config: Config) -> Result<Arc<Daemon>, ApiError> {
        let store = RedbStore::open(&config.state_dir.join("gnomon.redb"))?;
        let records = Arc::new(Records::new(Arc::new(store)));
        let jobs = Jobs::new(records.count_start()?);
        let shared = Shared::open(&config)?;
        let identity = config.link.as_ref().map(|link| Identity::load(&link.pki)).transpose()?;
        if let Some(identity) = &identity
            && identity.name() != config.node
        {
            return Err(ApiError::refused(format!(
                "the certificate is for node '{}', and this node is called '{}'",
                identity.name(),
                config.node
            ))
            .then("set node.name to the name given to `gnomon node init`, or make certificates for this name"));
        }
        let learning = Learning::new(&config.model, config.learn)?;
        let keeper = Arc::new(Keeper::open(&config.volume_dir, &config.nbd_socket, Arc::clone(&records), learning)?);
        let vms = Vms::open(&config.run_dir, Arc::clone(&keeper), Arc::clone(&records))?;
        let memory = Memory::new(&config, Arc::clone(&records));
        let moves = Moves::default();
        let vitals = Vitals::start(&vms);
        let feeds = Feeds::new(&config.feeds);
        let balancing = Balancing::new(config.balancers.clone(), config.hooks.clone());
        let daemon = Arc::new(Daemon {
            config,
            records,
            keeper,
            vms,
            memory,
            jobs,
            moves,
            vitals,
            updates: Updates::default(),
            feeds,
            balancing,
            protections: Protections::default(),
            shadows: Shadows::default(),
            identity,
            shared,
            started: Instant::now(),
        });
        moving::landing::offer_again(&daemon)?;
        Ok(daemon)
    }

    /// Connects to the node called `name`.
    pub async fn dial(&self, name: &str) -> Result<Session, ApiError> {
        let peer = self.config.peers.iter().find(|peer| peer.name == name).ok_or_else(|| {
            ApiError::new(crate::api::Kind::NotFound, format!("node '{name}' is not known here"))
                .then("add it as [[peer]] with name and address to the configuration of this node")
        })?;
        let identity = self.identity.as_ref().ok_or_else(no_link)?;
        Ok(gnomon_link::connect_with(&peer.address, Some(name), identity, self.link_options()).await?)
    }

    /// Writes down what was done to a VM, and tells whoever wants to hear of it. An event that cannot be written is told
    /// in the log.
    pub fn note(&self, event: &EventView) {
        if let Err(error) = self.records.put_event(event) {
            tracing::error!(vm = event.vm, what = event.what, %error, "an event could not be written down");
        }
        self.balancing.tell(event);
    }

    /// The store that other nodes see too, if there is one.
    pub fn shared_store(&self) -> Option<Arc<dyn Store>> {
        self.shared.as_ref().map(Shared::store)
    }

    /// Refuses early what cannot work: a node that is not known, or no link at all.
    pub fn check_peer(&self, name: &str) -> Result<(), ApiError> {
        self.identity.as_ref().ok_or_else(no_link)?;
        if name == self.config.node {
            return Err(ApiError::refused(format!("'{name}' is this very node")).then("name another node"));
        }
        match self.config.peers.iter().any(|peer| peer.name == name) {
            true => Ok(()),
            false => Err(ApiError::new(crate::api::Kind::NotFound, format!("node '{name}' is not known here"))
                .then("add it as [[peer]] with name and address to the configuration of this node")),
        }
    }

    fn link_options(&self) -> Options {
        Options { rate: self.config.link.as_ref().and_then(|link| link.rate), ..Options::default() }
    }

    /// This daemon, as the API shows it.
    pub fn view(&self) -> NodeView {
        NodeView {
            name: self.config.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_string(),
            pid: std::process::id(),
            up_s: self.started.elapsed().as_secs(),
            nbd_socket: self.config.nbd_socket.display().to_string(),
            nbd_tcp: self.config.nbd_tcp.as_ref().map(|tcp| tcp.listen.to_string()),
            link: self.config.link.as_ref().map(|link| link.listen.to_string()),
        }
    }

    /// This node, those it was told of, and those that it hears of at the shared store.
    pub async fn peers(&self) -> Vec<PeerView> {
        let present = match &self.shared {
            Some(shared) => shared.present().await,
            None => None,
        };
        let is_present = |name: &str| present.as_ref().map(|present| present.contains_key(name));
        let (name, address) = (self.config.node.clone(), self.config.link_address());
        let mut all = vec![PeerView { present: is_present(&name), name, address, here: true, reachable: true }];
        let mut others: BTreeMap<&str, &str> = BTreeMap::new();
        others.extend(present.iter().flatten().map(|(name, address)| (name.as_str(), address.as_str())));
        others.extend(self.config.peers.iter().map(|peer| (peer.name.as_str(), peer.address.as_str())));
        for (name, address) in others.into_iter().filter(|(name, _)| *name != self.config.node) {
            let tried = tokio::time::timeout(Duration::from_secs(1), TcpStream::connect(address));
            let (reachable, present) = (matches!(tried.await, Ok(Ok(_))), is_present(name));
            let (name, address) = (name.to_string(), address.to_string());
            all.push(PeerView { name, address, here: false, reachable, present });
        }
        all
    }
}

fn no_link() -> ApiError {
    ApiError::refused("this node has no link to others")
        .then("make certificates with `gnomon node init` and add a [link] section to the configuration")
}

/// How long the lock of a daemon that was killed may outlive it: in a child that it had forked and that has not begun its
/// own program yet.
const FREED_WITHIN: Duration = Duration::from_secs(2);

/// One daemon for one state folder: two would each believe to be the only writer.
fn lock(state_dir: &Path) -> Result<File, ApiError> {
    let file = File::create(state_dir.join("lock"))?;
    let begun = Instant::now();
    while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        if begun.elapsed() > FREED_WITHIN {
            return Err(ApiError::refused(format!("another daemon uses {}", state_dir.display()))
                .then("stop it, or give this one another node.state_dir"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(file)
}

fn open_nbd(daemon: &Daemon) -> Result<Vec<NbdServer>, ApiError> {
    let (config, exports) = (&daemon.config, daemon.keeper.exports());
    let mut servers = vec![NbdServer::bind(NbdAddress::Unix(config.nbd_socket.clone()), Arc::clone(exports))?];
    if let Some(tcp) = &config.nbd_tcp {
        let address =
            NbdAddress::TcpTls { at: tcp.listen, config: tls::server_config(&tcp.pki)?, mode: TlsMode::Required };
        servers.push(NbdServer::bind(address, Arc::clone(exports))?);
    }
    Ok(servers)
}

async fn open_link(daemon: &Daemon) -> Result<Option<Listener>, ApiError> {
    let (Some(link), Some(identity)) = (&daemon.config.link, &daemon.identity) else { return Ok(None) };
    Ok(Some(Listener::bind_with(&link.listen.to_string(), identity, daemon.link_options()).await?))
}

/// Serves every session that comes; never returns without a link either.
async fn accept_all(link: Option<Listener>, daemon: &Arc<Daemon>) {
    if let Some(listener) = link {
        while let Some(session) = listener.accept().await {
            tokio::spawn(moving::serve_session(Arc::clone(daemon), session));
        }
    }
    std::future::pending::<()>().await;
}

fn say_where(daemon: &Daemon) {
    let view = daemon.view();
    tracing::info!(node = view.name, version = view.version, "gnomon serves");
    tracing::info!("api   {}", daemon.config.socket.display());
    tracing::info!("disks {}", view.nbd_socket);
    if let Some(tcp) = view.nbd_tcp {
        tracing::info!("disks {tcp} (TLS, client certificates)");
    }
    if let Some(store) = &daemon.config.shared_store {
        tracing::info!("store {store}");
    }
    match view.link {
        Some(link) => tracing::info!("link  {link}"),
        None => tracing::info!("link  none: this node stands alone"),
    }
}
