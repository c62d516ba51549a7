//! `gnomon node`: this host as a node among others.

use std::{path::PathBuf, time::Duration};

use clap::Subcommand;
use gnomon_link::pki::{Authority, CA_KEY, NODE_VALIDITY};

use super::{Context, Ended, output::table};
use crate::{
    api::{ApiError, types::PeerView},
    names,
};

/// How long the authority itself is valid: ten years, five times a node's certificate.
const CA_VALIDITY: Duration = Duration::from_secs(3650 * 24 * 3600);

/// `gnomon node`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make the certificates with which nodes know each other
    #[command(
        after_help = "Examples:\n  gnomon node init --dir pki/a --name a --ca-dir pki/ca      the first makes the authority\n  \
                            gnomon node init --dir pki/b --name b --ca-dir pki/ca      others are issued by it\n\n\
                            Keep the authority's folder offline; each node needs only its own folder."
    )]
    Init {
        /// Where the node's certificate and key go
        #[arg(long)]
        dir: PathBuf,
        /// The node's name
        #[arg(long, value_parser = names::parse)]
        name: String,
        /// Where the authority is, or is to be made [default: ca below DIR]
        #[arg(long)]
        ca_dir: Option<PathBuf>,
    },
    /// List the nodes this one knows
    #[command(after_help = "Examples:\n  gnomon node ls\n  gnomon node ls --json")]
    Ls,
}

pub(super) async fn run(command: Command, context: &Context) -> Ended {
    match command {
        Command::Init { dir, name, ca_dir } => {
            let made = init(&dir, &name, ca_dir.unwrap_or_else(|| dir.join("ca")))?;
            context.output.result(&made, |made| {
                let authority = if made.new_authority { "made" } else { "used" };
                format!("{}: certificate of node {}, authority in {} {authority}", made.dir, made.name, made.ca_dir)
            });
        }
        Command::Ls => {
            let nodes: Vec<PeerView> = context.client.get("/v1/nodes").await?;
            context.output.result(&nodes, |nodes| list(nodes));
        }
    }
    Ok(())
}

/// What `node init` has made.
#[derive(serde::Serialize)]
struct Made {
    name: String,
    dir: String,
    ca_dir: String,
    new_authority: bool,
}

fn init(dir: &std::path::Path, name: &str, ca_dir: PathBuf) -> Result<Made, ApiError> {
    let new_authority = !ca_dir.join(CA_KEY).exists();
    let authority = match new_authority {
        true => {
            let authority = Authority::create(CA_VALIDITY)?;
            authority.write(&ca_dir)?;
            authority
        }
        false => Authority::load(&ca_dir)?,
    };
    authority.issue(name, NODE_VALIDITY)?.write(dir)?;
    Ok(Made {
        name: name.to_string(),
        dir: dir.display().to_string(),
        ca_dir: ca_dir.display().to_string(),
        new_authority,
    })
}

fn list(nodes: &[PeerView]) -> String {
    let rows: Vec<[String; 4]> = nodes
        .iter()
        .map(|node| {
            let state = match (node.here, node.reachable) {
                (true, _) => "here",
                (false, true) => "reachable",
                (false, false) => "unreachable",
            };
            let present = match node.present {
                Some(true) => "present",
                Some(false) => "absent",
                None => "-",
            };
            [node.name.clone(), node.address.clone(), state.to_string(), present.to_string()]
        })
        .collect();
    table(["NAME", "ADDRESS", "STATE", "AT THE STORE"], &rows)
}
