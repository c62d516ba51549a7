//! The command line. Each command is a file; here they are gathered, and their ends become exit codes:
//! 0 done, 1 failed, 2 wrong usage, 3 refused for safety.

mod bench;
mod completions;
mod doctor;
mod forecast;
mod group;
mod hold;
mod job;
mod memory;
mod node;
mod outlook;
mod output;
mod protect;
mod serve;
mod trace;
mod update;
mod verified;
mod vm;
mod volume;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{
    api::{ApiError, Kind, chain, client::Client},
    config::{self, ConfigError},
};
pub use output::{Output, facts};

/// Predictive shadowing for virtual machines, beside stock QEMU.
#[derive(Debug, Parser)]
#[command(name = "gnomon", version, about, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    /// The daemon's socket [default: gnomon.sock below the daemon's run_dir]
    #[arg(long, global = true, env = "GNOMON_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,

    /// Answer in JSON
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  gnomon serve &                                    start the daemon with its defaults
  gnomon volume import root --file debian.qcow2     make a volume of an image
  gnomon vm run web --memory 2G --disk root         run a VM on it
  gnomon vm move web --to node-b                    move it while it runs
  gnomon doctor                                     what this host can do

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused for safety.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon
    Serve(serve::Args),
    /// Nodes: make this host one, list those it knows
    #[command(subcommand)]
    Node(node::Command),
    /// Virtual machines: run, look, stop, adopt, move
    #[command(subcommand)]
    Vm(vm::Command),
    /// Volumes: the disks of virtual machines
    #[command(subcommand)]
    Volume(volume::Command),
    /// Trust groups: VMs for which memory is made ready ahead
    #[command(subcommand)]
    Group(group::Command),
    /// Long work under way: imports, verifications, moves
    #[command(subcommand)]
    Job(job::Command),
    /// Traces: record what a guest does with its disk, look at recordings
    #[command(subcommand)]
    Trace(trace::Command),
    /// Forecasts: what is expected of a volume and why; try the predictors on a recorded trace
    #[command(subcommand)]
    Forecast(forecast::Command),
    /// Benchmarks: measure this host
    #[command(subcommand)]
    Bench(bench::Command),
    /// Say what this host can do
    Doctor(doctor::Args),
    /// Keep staged memory while the daemon is away; started by it
    #[command(hide = true)]
    HoldMemory(hold::Args),
    /// Print a completion script for a shell
    Completions(completions::Args),
}

/// What every command is given.
pub struct Context {
    /// Asks the daemon.
    pub client: Client,
    /// Prints results.
    pub output: Output,
}

/// How a command ended that did not do what it should.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    error: ApiError,
}

impl Failure {
    /// The command was used wrongly.
    pub fn usage(message: impl Into<String>) -> Failure {
        ApiError::usage(message).into()
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Failure {
        Failure { code: error.kind.exit_code(), error }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        Failure::usage(error.to_string())
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        match error.downcast::<ApiError>() {
            Ok(error) => error.into(),
            Err(error) => ApiError::new(Kind::Unavailable, chain(error.as_ref())).into(),
        }
    }
}

/// What a command returns.
pub type Ended = Result<(), Failure>;

/// Reads the command line, carries it out, and says how it ended.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(cli.json);
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, error }) => {
            output.error(&error);
            ExitCode::from(code)
        }
    }
}

fn run(cli: Cli) -> Ended {
    let context = Context { client: Client::new(socket_of(&cli)?), output: Output::new(cli.json) };
    match cli.command {
        Command::Serve(args) => serve::run(args),
        Command::Completions(args) => completions::run(args),
        Command::HoldMemory(args) => hold::run(args),
        command => {
            let runtime = asking_runtime()?;
            let ended = runtime.block_on(ask(command, &context));
            // A read of the terminal that is under way cannot be called back: nobody waits for one more key.
            runtime.shutdown_background();
            ended
        }
    }
}

async fn ask(command: Command, context: &Context) -> Ended {
    match command {
        Command::Node(command) => node::run(command, context).await,
        Command::Vm(command) => vm::run(command, context).await,
        Command::Volume(command) => volume::run(command, context).await,
        Command::Group(command) => group::run(command, context).await,
        Command::Job(command) => job::run(command, context).await,
        Command::Trace(command) => trace::run(command, context).await,
        Command::Forecast(command) => forecast::run(command, context).await,
        Command::Bench(command) => bench::run(command),
        Command::Doctor(args) => doctor::run(args, context).await,
        Command::Serve(_) | Command::Completions(_) | Command::HoldMemory(_) => {
            unreachable!("carried out without a client")
        }
    }
}

/// A client waits for one answer at a time: one thread is enough.
fn asking_runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| ApiError::from(error).into())
}

fn socket_of(cli: &Cli) -> Result<PathBuf, Failure> {
    // Commands that need no daemon must not fail for want of its socket: an empty path fails when it is dialled.
    Ok(cli.socket.clone().or_else(config::default_socket).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_examples() {
        fn walk(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            if command.has_subcommands() {
                command.get_subcommands().for_each(|below| walk(below, &path));
            } else {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("gnomon "), "{path} --help has no example");
            }
        }
        walk(&Cli::command(), "");
    }
}
