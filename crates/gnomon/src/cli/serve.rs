//! `gnomon serve`: the daemon in the foreground.

use std::path::PathBuf;

use tracing_subscriber::EnvFilter;

use super::Ended;
use crate::{config::Config, daemon};

/// `gnomon serve`
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  gnomon serve\n  gnomon serve --config /etc/gnomon.toml\n  \
                        gnomon serve --store etcd://10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379\n  \
                        GNOMON_LOG=debug gnomon serve --log-json\n\n\
                        A configuration file may have [node] name, run_dir, state_dir; [api] socket;\n\
                        [link] listen, pki, rate; [[peer]] name, address; [store] shared, lease, ca,\n\
                        certificate, key (files, for an etcd with TLS); [volume] dir, nbd_socket, nbd_tcp, nbd_pki;\n\
                        [forecast] model (a file of `gnomon forecast train`), learn (true: go on learning);\n\
                        [memory] budget, floor (sizes: what is staged at most, what stays available), step (seconds\n\
                        between two plans); [[feed]] name, one of file, url and command, every, patience, oldest, edges;\n\
                        [[balancer]] vm, haproxy, server, address (a table: node = \"host:port\");\n\
                        [[hook]] url or command, vm (none: all).")]
pub struct Args {
    /// The configuration, in TOML; without it everything has its default
    #[arg(long, env = "GNOMON_CONFIG", value_name = "PATH")]
    config: Option<PathBuf>,
    /// What nodes must agree on goes to this etcd (etcd://HOST:PORT,HOST:PORT/NAMESPACE), which several of them see:
    /// who is present, and who may run a protected VM. What concerns this host alone stays on it
    #[arg(long, value_name = "ADDRESS")]
    store: Option<gnomon_store::EtcdAddress>,
    /// Log in JSON
    #[arg(long)]
    log_json: bool,
}

pub(super) fn run(args: Args) -> Ended {
    let mut config = Config::load(args.config.as_deref())?;
    config.shared_store = args.store.or(config.shared_store);
    start_log(args.log_json);
    let runtime = tokio::runtime::Runtime::new().map_err(crate::api::ApiError::from)?;
    runtime.block_on(daemon::run(config))?;
    Ok(())
}

fn start_log(json: bool) {
    let filter = EnvFilter::try_from_env("GNOMON_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match json {
        true => log.json().init(),
        false => log.init(),
    }
}
