//! `gnomon volume`: the disks of virtual machines.

use std::path::PathBuf;

use clap::Subcommand;
use gnomon_terms::{Bytes, BytesPerSecond};

use super::{
    Context, Ended, Failure, forecast, job, outlook,
    output::{facts, table},
};
use crate::{
    api::types::{
        Confirm, CreateVolume, Front, ImportVolume, JobView, MoveMode, MoveRequest, Rollback, SetBandwidth,
        VerifyRequest, VolumeView,
    },
    daemon::serve_file,
    names,
};

/// `gnomon volume`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make an empty volume; it takes space as it is written
    #[command(after_help = "Examples:\n  gnomon volume create data --size 20G")]
    Create {
        /// Its name, also of its NBD export
        #[arg(value_parser = names::parse)]
        name: String,
        /// Its size: 512MiB, 20G
        #[arg(long)]
        size: Bytes,
        /// Another volume, from whose experience forecasts begin: one of the same image, of a guest that does the same
        #[arg(long, value_name = "VOLUME")]
        like: Option<String>,
    },
    /// Make a volume of a disk image: raw, qcow2, or whatever qemu-img reads
    #[command(after_help = "Examples:\n  gnomon volume import root --file debian-12.qcow2")]
    Import {
        /// Its name
        #[arg(value_parser = names::parse)]
        name: String,
        /// The image, on the daemon's host
        #[arg(long)]
        file: PathBuf,
        /// The volume's size, if it is to be larger than the image: 40G
        #[arg(long)]
        size: Option<Bytes>,
        /// Another volume, from whose experience forecasts begin: one of the same image, of a guest that does the same
        #[arg(long, value_name = "VOLUME")]
        like: Option<String>,
        /// Do not wait
        #[arg(long)]
        detach: bool,
    },
    /// List volumes
    #[command(after_help = "Examples:\n  gnomon volume ls\n  gnomon volume ls --json")]
    Ls,
    /// Show one volume
    #[command(after_help = "Examples:\n  gnomon volume show root")]
    Show {
        /// Which volume
        name: String,
    },
    /// Say where a volume is served by NBD
    #[command(after_help = "Examples:\n  gnomon volume export root\n  nbdinfo $(gnomon volume export root)\n  \
                            qemu-img convert $(gnomon volume export root) -O qcow2 backup.qcow2")]
    Export {
        /// Which volume
        name: String,
    },
    /// Move a volume to another node while it is in use
    #[command(after_help = "Examples:\n  gnomon volume move data --to node-b\n  \
                            gnomon volume move data --to node-b --mode pre --bandwidth 400mbit --detach\n  \
                            gnomon volume move data --to node-b --dry-run")]
    Move {
        /// Which volume
        name: String,
        /// How it is moved
        #[command(flatten)]
        how: MoveArgs,
        /// Move nothing: say what the move would be like, or why it would be refused
        #[arg(long)]
        dry_run: bool,
        /// For --dry-run: say instead what would have happened to the guest of this recording
        #[arg(long, value_name = "FILE", requires = "dry_run")]
        trace: Option<PathBuf>,
    },
    /// Change what a running move may use
    #[command(after_help = "Examples:\n  gnomon volume bandwidth data 200mbit\n  gnomon volume bandwidth data none")]
    Bandwidth {
        /// Which volume
        name: String,
        /// 400mbit, 50MB/s, or none
        #[arg(value_parser = rate_or_none)]
        rate: Rate,
    },
    /// Cancel a move that has not switched yet: everything stays where it was
    #[command(after_help = "Examples:\n  gnomon volume cancel data")]
    Cancel {
        /// Which volume
        name: String,
    },
    /// Bring a volume back whose move has switched and still drains: this node is the writer again, and nothing that
    /// was acknowledged is lost. To be asked on the node where the move began
    #[command(after_help = "Examples:\n  gnomon volume rollback data\n  \
                            gnomon volume rollback data --i-have-fenced node-b\n\n\
                            When the destination is dead, what a guest there was told is durable is here. No one can tell \
                            a dead node\nfrom a cut cable: make sure that it cannot write, then say so.")]
    Rollback {
        /// Which volume
        name: String,
        /// How it is brought back
        #[command(flatten)]
        how: RollbackArgs,
    },
    /// Keep a volume that drains here when the node it came from is gone for good: this node is the primary, with all
    /// blocks, or is told how many are missing
    #[command(after_help = "Examples:\n  gnomon volume confirm data --i-have-fenced node-a\n\n\
                            No one can tell a dead node from a cut cable: make sure that it cannot write, then say so. \
                            A node that\nanswers is refused. If the move was rolled back there meanwhile, what was \
                            written there since is not here;\nshould the node return, it is told, and writes no more.")]
    Confirm {
        /// Which volume
        name: String,
        /// The node it came from, which is dead: you have made sure that it cannot write any more
        #[arg(long, value_name = "NODE")]
        i_have_fenced: String,
    },
    /// Compare a volume with its other copy while it moves, or with the one that is named: list what differs
    #[command(after_help = "Examples:\n  gnomon volume verify data\n  gnomon volume verify data --with node-b\n  \
                            gnomon volume verify data --against backup.raw --json\n\n\
                            What one copy does not have yet is not compared, and is counted. Ends with 1 when they differ.\n\
                            Without another copy it tells the volume's BLAKE3 digest.")]
    Verify {
        /// Which volume
        name: String,
        /// The node that has the other copy
        #[arg(long, value_name = "NODE")]
        with: Option<String>,
        /// A raw image on the daemon's host
        #[arg(long, value_name = "FILE", conflicts_with = "with")]
        against: Option<PathBuf>,
        /// Do not wait
        #[arg(long)]
        detach: bool,
    },
    /// Remove a volume and its data
    #[command(after_help = "Examples:\n  gnomon volume rm data --yes")]
    Rm {
        /// Which volume
        name: String,
        /// Its data is lost for good: say so
        #[arg(long)]
        yes: bool,
        /// Also a spare copy whose move was given up while this node was away, when its source cannot be asked
        #[arg(long)]
        force: bool,
    },
    /// Serve one raw file by NBD or vhost-user-blk on a unix socket, without a daemon, until SIGINT or SIGTERM
    #[command(after_help = "Examples:\n  gnomon volume serve-file --file disk.img --socket /tmp/d.sock\n  \
                            nbdinfo 'nbd+unix:///?socket=/tmp/d.sock'")]
    ServeFile {
        /// The file
        #[arg(long)]
        file: PathBuf,
        /// The socket to make
        // The same id as the global option takes its place here, and GNOMON_SOCKET does not apply.
        #[arg(long, id = "socket", value_name = "SOCKET")]
        socket: PathBuf,
        /// Which protocol it speaks
        #[arg(long, value_enum, default_value = "nbd")]
        front: Front,
        /// Refuse writes
        #[arg(long)]
        read_only: bool,
        /// The export's name
        #[arg(long, default_value = "")]
        name: String,
    },
}

/// How a move is rolled back: shared by volumes and VMs.
#[derive(Clone, Debug, clap::Args)]
pub struct RollbackArgs {
    /// The destination, which is dead: you have made sure that it cannot write any more
    #[arg(long, value_name = "NODE")]
    i_have_fenced: Option<String>,
    /// Do not wait
    #[arg(long)]
    detach: bool,
}

/// How something is moved: shared by volumes and VMs.
#[derive(Clone, Debug, clap::Args)]
pub struct MoveArgs {
    /// The node it goes to
    #[arg(long, value_name = "NODE")]
    pub to: String,
    /// When to switch: pre (when everything is there), hybrid (when the forecast stall is small), post (at once)
    #[arg(long, value_enum, default_value = "hybrid")]
    pub mode: MoveMode,
    /// The most it may use: 400mbit, 50MB/s
    #[arg(long, value_name = "RATE")]
    pub bandwidth: Option<BytesPerSecond>,
    /// Do not send the destination's writes back while draining: cheaper, but its death then loses writes
    #[arg(long)]
    pub no_reverse: bool,
    /// Do not wait
    #[arg(long)]
    pub detach: bool,
}

impl MoveArgs {
    /// As the API asks for it.
    pub fn request(&self) -> MoveRequest {
        MoveRequest {
            to: self.to.clone(),
            mode: self.mode,
            ram: None,
            bandwidth: self.bandwidth.map(|rate| rate.0),
            reverse: !self.no_reverse,
        }
    }
}

/// A rate, or the absence of a limit.
#[derive(Clone, Copy, Debug)]
pub struct Rate(Option<BytesPerSecond>);

fn rate_or_none(text: &str) -> Result<Rate, gnomon_terms::ParseUnitError> {
    match text {
        "none" => Ok(Rate(None)),
        text => text.parse().map(|rate| Rate(Some(rate))),
    }
}

pub(super) async fn run(command: Command, context: &Context) -> Ended {
    let Context { client, output } = context;
    match command {
        Command::Create { name, size, like } => {
            let volume: VolumeView = client.post("/v1/volumes", &CreateVolume { name, size: size.0, like }).await?;
            output.result(&volume, words);
        }
        Command::Import { name, file, size, like, detach } => {
            let file = absolute(file)?;
            let job: JobView = client
                .post("/v1/volumes/import", &ImportVolume { name, file, size: size.map(|size| size.0), like })
                .await?;
            job::follow_or_detach(&job, detach, context).await?;
        }
        Command::Ls => {
            let volumes: Vec<VolumeView> = client.get("/v1/volumes").await?;
            output.result(&volumes, |volumes| list(volumes));
        }
        Command::Show { name } => output.result(&show(&name, context).await?, words),
        Command::Export { name } => output.result(&show(&name, context).await?, |volume| volume.nbd.clone()),
        Command::Move { how, trace: Some(trace), .. } => forecast::dry_run(&trace, how.bandwidth, context)?,
        Command::Move { name, how, dry_run: true, .. } => {
            outlook::run(&format!("/v1/volumes/{name}/outlook"), &how.request(), context).await?
        }
        Command::Move { name, how, .. } => {
            begin(&format!("/v1/volumes/{name}/move"), &how.request(), how.detach, context).await?
        }
        Command::Bandwidth { name, rate: Rate(rate) } => {
            let body = SetBandwidth { rate: rate.map(|rate| rate.0) };
            let job: JobView = client.post(&format!("/v1/volumes/{name}/bandwidth"), &body).await?;
            output.result(&job, |job| format!("{} of {} goes on", job.kind, job.subject));
        }
        Command::Cancel { name } => job::cancel(&format!("/v1/volumes/{name}/cancel"), context).await?,
        Command::Rollback { name, how } => roll_back(&format!("/v1/volumes/{name}"), how, context).await?,
        Command::Confirm { name, i_have_fenced } => {
            let body = Confirm { fenced: i_have_fenced };
            let volume: VolumeView = client.post(&format!("/v1/volumes/{name}/confirm"), &body).await?;
            output.result(&volume, words);
        }
        Command::Verify { name, with, against, detach } => {
            let body = VerifyRequest { with, against: against.map(absolute).transpose()? };
            begin(&format!("/v1/volumes/{name}/verify"), &body, detach, context).await?
        }
        Command::Rm { name, yes, force } => remove(&name, yes, force, context).await?,
        Command::ServeFile { file, socket, front, read_only, name } => {
            serve_file::run(&file, &socket, front, read_only, &name).await?;
        }
    }
    Ok(())
}

async fn show(name: &str, context: &Context) -> Result<VolumeView, Failure> {
    Ok(context.client.get(&format!("/v1/volumes/{name}")).await?)
}

/// Begins a job by posting `body` to `path`, and follows it.
pub async fn begin<B: serde::Serialize>(path: &str, body: &B, detach: bool, context: &Context) -> Ended {
    let job: JobView = context.client.post(path, body).await?;
    job::follow_or_detach(&job, detach, context).await
}

/// Rolls back the move of what is at `path`.
pub async fn roll_back(path: &str, how: RollbackArgs, context: &Context) -> Ended {
    begin(&format!("{path}/rollback"), &Rollback { fenced: how.i_have_fenced }, how.detach, context).await
}

async fn remove(name: &str, yes: bool, force: bool, context: &Context) -> Ended {
    if !yes {
        return Err(crate::api::ApiError::refused(format!("removing '{name}' loses its data for good"))
            .then("say --yes if that is what you want")
            .into());
    }
    let volume: VolumeView = context.client.delete(&format!("/v1/volumes/{name}?force={force}")).await?;
    context.output.result(&volume, |volume| format!("{} removed", volume.name));
    Ok(())
}

/// The daemon has another working directory: it is told the whole path.
pub fn absolute(path: PathBuf) -> Result<PathBuf, Failure> {
    std::path::absolute(&path).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))
}

fn list(volumes: &[VolumeView]) -> String {
    let rows: Vec<[String; 6]> = volumes
        .iter()
        .map(|volume| {
            [
                volume.name.clone(),
                volume.role.clone(),
                Bytes(volume.size).to_string(),
                Bytes(volume.allocated).to_string(),
                volume.clients.to_string(),
                volume.job.clone().unwrap_or_default(),
            ]
        })
        .collect();
    table(["NAME", "ROLE", "SIZE", "ALLOCATED", "CLIENTS", "JOB"], &rows)
}

fn words(volume: &VolumeView) -> String {
    let seen = volume.accesses;
    facts(&[
        ("name", volume.name.clone()),
        ("role", volume.role.clone()),
        ("size", Bytes(volume.size).to_string()),
        ("allocated", Bytes(volume.allocated).to_string()),
        ("file", volume.path.clone()),
        ("nbd", volume.nbd.clone()),
        ("clients", volume.clients.to_string()),
        ("read", format!("{} requests, {}", seen.reads, Bytes(seen.read_bytes))),
        ("written", format!("{} requests, {}", seen.writes, Bytes(seen.written_bytes))),
        ("job", volume.job.clone().unwrap_or_default()),
    ])
}
