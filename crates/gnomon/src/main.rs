//! gnomon: predictive shadowing for virtual machines, beside stock QEMU. The roof: the only crate that knows all
//! parts and wires them together. `main` reads the command line; [`cli`] carries it out, most of it by asking the
//! [`daemon`] over its [`api`].

mod api;
mod cli;
mod config;
mod daemon;
mod doctor;
mod files;
mod metrics;
mod names;
mod progress;
mod trace;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
