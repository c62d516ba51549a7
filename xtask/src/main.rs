//! `cargo xtask`: the workshop. Everything that is done to gnomon, as opposed to with it, has a name here, and CI
//! calls the same names.
//!
//! Floor: beside the house. Depends on nothing of gnomon and on two small crates, so that it starts in seconds on a
//! fresh clone.

mod agent_image;
mod args;
mod bench;
mod check;
mod crosscheck;
mod debian;
mod demo;
mod guest_image;
mod initramfs;
mod kernel;
mod load_image;
mod model;
mod newer_qemu;
mod postgres;
mod setup;
mod sh;
mod test;
mod tidy;
mod two_nodes;
mod wire;

use std::process::ExitCode;

use args::Args;

const HELP: &str = "\
cargo xtask COMMAND

  test                 everything CI runs: setup, all tests, tidy, format, clippy, docs
  check                format, clippy, docs, tidy (no tests)
  tidy                 what a compiler does not see: dependency arrows, purity, module docs, sizes, papers
  demo                 the main job: two nodes and a real guest on this machine
                         [--json] [--link RATE,DELAY] [--size 2GiB] [--mode pre|hybrid|post]
                         [--ram engine|qemu] [--keep]
  crash                a Linux guest on vhost-user-blk whose daemon is killed again and again (part of test)
  numa                 tests of staged memory in a machine with two NUMA nodes and 2 MiB pages (part of test)
  bench checkpoint     how long a guest stands for a checkpoint, beside QEMU's bare state, how much slower it works, and
                       that memory it does not write costs nothing   [--json] [--rounds N] [--ram 256,1024,4096,8192]
  bench switchover     how long a guest is silent when it changes its host, or its QEMU, beside QEMU's own migration
                         [--json] [--plot FILE.svg] [--rounds N] [--ram 256,1024] [--rates 0,4,16]
  bench wire           bytes sent for each page that guests with real loads write, beside raw pages, XBZRLE and zstd
                         [--json] [--rounds N]
  bench forecast       what forecasts are worth on recorded traces, and cost: reads of a disk, staged memory, traffic between
                       nodes, who reads from where   [--only volume|memory|traffic|location|speed] [--data FOLDER] [--json]
  bench memory         what staged memory is worth: recorded demand through the planner at 2 to 20 % idle, beside a static
                       reserve; what planning costs; what a Linux guest waits for memory, staged beside cold;
                         and what PostgreSQL in a Debian guest sees of it (root)
                         [--only replay|overhead|guests|debian] [--data FOLDER] [--quick] [--rounds 20] [--json]
  bench nbd            our NBD server beside nbdkit and qemu-nbd   [--json] [--plot FILE.svg] [--rounds N]
  bench interceptor    what a running move costs the volume's guest: latency of 4 KiB reads and writes while the move
                       primes over a link of 400 Mbit/s, beside the same volume at rest. 1.0 is no cost; less, that many
                       times slower                                                                 (same options)
  bench postgres       PostgreSQL under pgbench in a Debian guest, handed over and failed over in strict mode: what its
                       clients heard nothing for, and whether anything is missing that they were told of (root)
                         [--json] [--switchovers 20] [--failovers 20] [--clients 4]
  bench vhost          our vhost-user-blk beside qemu-storage-daemon's, driven by a guest          (same options)
  crosscheck           the networks of forecasts beside candle's: the same weights, the same outputs, and how fast each is.
                         Builds candle, which takes long, once
  model                train the network that is shipped anew, from the recordings that are shipped
  setup                install the Debian packages that tests and demo need (root), or say which; unpack a newer
                       QEMU beside the installed one, and make the guest with QEMU's agent
  guest                make the Linux guest of tests and demo again, in target/gnomon-cache
  wire                 a link with a rate and a delay, for hand tests
                         --listen ADDR --to ADDR [--rate 400mbit] [--delay 1ms]

Exit code: 0 done, 1 failed, 2 wrong usage, 3 refused because of how this machine is.";

/// What a command ends with, when it is not an error.
type Ended = anyhow::Result<ExitCode>;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let Some((command, rest)) = words.split_first() else { return help() };
    if command == "--help" || command == "help" || rest.iter().any(|word| word == "--help") {
        return help();
    }
    match dispatch(command, rest) {
        Ok(code) => code,
        Err(err) => {
            eprintln!("xtask {command}: {err:#}");
            let code = if err.is::<args::Misuse>() {
                2
            } else if err.is::<setup::Refusal>() {
                3
            } else {
                1
            };
            ExitCode::from(code)
        }
    }
}

fn dispatch(command: &str, rest: &[String]) -> Ended {
    let args = |flags, options| Args::parse(rest, flags, options);
    match command {
        "test" => args(&[], &[]).map_err(Into::into).and_then(|_| test::run()),
        "check" => args(&[], &[]).map_err(Into::into).and_then(|_| check::run()),
        "tidy" => args(&[], &[]).map_err(Into::into).and_then(|_| tidy::run()),
        "guest" => {
            args(&[], &[])?;
            guest_image::build().map(|_| ExitCode::SUCCESS)
        }
        "crosscheck" => args(&[], &[]).map_err(Into::into).and_then(|_| crosscheck::run()),
        "model" => args(&[], &[]).map_err(Into::into).and_then(|_| model::run()),
        "setup" => args(&[], &[]).map_err(Into::into).and_then(|_| setup::run()),
        "bench" => {
            let options = ["plot", "rounds", "ram", "rates", "switchovers", "failovers", "clients", "only", "data"];
            bench::run(&args(&["json", "quick"], &options)?)
        }
        "demo" => demo::run(&args(&["json", "keep"], &["link", "size", "mode", "ram", "seed"])?),
        "crash" => args(&[], &[]).map_err(Into::into).and_then(|_| demo::crash::run()),
        "numa" => args(&[], &[]).map_err(Into::into).and_then(|_| two_nodes::run()),
        "wire" => wire::run(&args(&[], &["listen", "to", "rate", "delay"])?),
        _ => Err(args::Misuse("no such command; see `cargo xtask --help`".to_owned()).into()),
    }
}

fn help() -> ExitCode {
    println!("{HELP}");
    ExitCode::SUCCESS
}
