//! `gnomon completions`: the shell learns the command line.

use std::io::{self, Write};

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, Ended};
use crate::api::ApiError;

/// `gnomon completions`
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  gnomon completions bash > /etc/bash_completion.d/gnomon\n  \
                        gnomon completions fish > ~/.config/fish/completions/gnomon.fish")]
pub struct Args {
    /// Which shell
    shell: Shell,
}

pub(super) fn run(args: Args) -> Ended {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "gnomon", &mut script);
    io::stdout().write_all(&script).map_err(|error| ApiError::from(error).into())
}
