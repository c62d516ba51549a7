//! `gnomon-guest`: the demo's guest, and its judge on the host.
//!
//! One static program. As PID 1 of a small machine it beats a heartbeat, reads and rewrites checksummed records on its
//! disk and checks everything it reads. In a shell the same code fills a disk beforehand, verifies every record of it
//! afterwards, or runs the workload on a file. It depends on nothing of gnomon: it must be able to accuse it.

mod bench;
mod chance;
mod disk;
mod heartbeat;
mod init;
mod latency;
mod memory;
mod net;
mod params;
mod plan;
mod ram;
mod record;
mod session;
mod uevents;
mod versions;
mod whole;
mod workload;

use std::{fs, io, path::Path, process::ExitCode, sync::Arc, sync::mpsc, time::Duration};

use disk::Disk;
use params::Params;
use ram::Ram;
use session::Session;
use versions::Versions;
use workload::Workload;

const HELP: &str = "\
The guest of gnomon's demo; /init in a machine, and in a shell:

  gnomon-guest fill   --file F --seed S --records N     write version 0 of all records (4 KiB each)
  gnomon-guest run    --file F --seed S --seconds T     run the workload on a file, reports on standard output
                      [--read-iops R] [--write-iops W] [--zipf E] [--versions OUT] …
  gnomon-guest verify --file F --seed S --versions V    judge all records against a version dump
                      (or --records N: all still as the fill left them)

Exit code: 0 all well, 1 something is wrong, 2 wrong usage.";

fn main() -> ExitCode {
    if std::process::id() == 1 {
        init::run();
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((deed, rest)) = arguments.split_first() else { return usage(None) };
    let params = match Params::from_shell(rest) {
        Ok(params) => params,
        Err(_) if rest.iter().any(|word| word == "--help") => return usage(None),
        Err(fault) => return usage(Some(&fault.to_string())),
    };
    let result = match deed.as_str() {
        "fill" => whole::fill(Path::new(&params.disk), params.seed, params.records).map(|()| true),
        "verify" => verify(&params),
        "run" => run(&params),
        _ => return usage((deed != "--help").then_some(deed)),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(err) => {
            eprintln!("gnomon-guest: {deed} {}: {err}", params.disk);
            ExitCode::FAILURE
        }
    }
}

fn usage(complaint: Option<&str>) -> ExitCode {
    match complaint {
        None => println!("{HELP}"),
        Some(complaint) => eprintln!("gnomon-guest: {complaint}\n\n{HELP}"),
    }
    ExitCode::from(if complaint.is_some() { 2 } else { 0 })
}

fn verify(params: &Params) -> io::Result<bool> {
    let path = Path::new(&params.disk);
    let versions = if params.versions.is_empty() {
        let records = if params.records == 0 { Disk::open(path)?.records()? } else { params.records };
        vec![0; records as usize]
    } else {
        let about = |err: &dyn std::fmt::Display| io::Error::other(format!("{}: {err}", params.versions));
        let dump = fs::read(&params.versions).map_err(|err| about(&err))?;
        let (seed, versions) = Versions::parse(&dump).map_err(|fault| about(&fault))?;
        if seed != params.seed {
            return Err(io::Error::other(format!("the dump is of seed {seed}, not {}", params.seed)));
        }
        versions
    };
    let verdict = whole::verify(path, params.seed, &versions)?;
    println!("{}", verdict.json());
    Ok(verdict.corrupt == 0)
}

/// The workload on a file: what the guest does, without a machine around it.
fn run(params: &Params) -> io::Result<bool> {
    let ram = Arc::new(Ram::new(params.buf_mib, params.seed));
    let ticks = heartbeat::start(io::sink(), params.tick, params.dirty, Arc::clone(&ram))?;
    let mut session = Session::new(Workload::start(params)?, params.seed, ram, ticks, io::stdout());
    let (_keep_open, commands) = mpsc::channel();
    session.run(&commands, Some(Duration::from_secs(params.seconds)))?;
    session.stop()?;
    if !params.versions.is_empty() {
        fs::write(&params.versions, session.versions())?;
    }
    Ok(session.clean())
}
