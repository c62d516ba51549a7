//! Replays trace files and prints what each predictor was worth: `replay [--touched] [--rate N] FILE...`.

use std::{env, fs, io::Read, time::Instant};

use gnomon_cycle::replay::{Allocation, ReplayOptions, replay};
use gnomon_forecast::trace::{Format, Trace};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut options = ReplayOptions::default();
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--touched" => options.allocation = Allocation::Touched,
            "--half" => options.allocation = Allocation::Half,
            "--rate" => options.rate = arguments.next().ok_or("--rate needs a number")?.parse()?,
            path => show(path, &options)?,
        }
    }
    Ok(())
}

fn show(path: &str, options: &ReplayOptions) -> Result<(), Failure> {
    let trace = load(path)?;
    let begin = Instant::now();
    let results = replay(&trace, options, &mut || begin.elapsed().as_nanos() as u64)?;
    println!("{path}: {} requests, {:?} allocated, {}x", trace.accesses.len(), options.allocation, options.rate);
    println!("{:>12} {:>9} {:>8} {:>12} {:>9}", "predictor", "stalled %", "gap", "wasted", "ns/access");
    for r in results {
        let (name, stalled, gap) = (r.predictor, r.stalled_pct, r.gap_closed);
        println!("{name:>12} {stalled:>9.3} {gap:>8.3} {:>12} {:>9.0}", r.bytes_wasted.to_string(), r.ns_per_access);
    }
    Ok(())
}

fn load(path: &str) -> Result<Trace, Failure> {
    let format = Format::of_name(path).ok_or("a trace ends in .csv, .vscsi or .lis (and .zst)")?;
    let file = fs::File::open(path)?;
    let mut bytes = Vec::new();
    match path.ends_with(".zst") {
        true => zstd::Decoder::new(file)?.read_to_end(&mut bytes)?,
        false => (&file).read_to_end(&mut bytes)?,
    };
    Ok(Trace::decode(format, &bytes)?)
}
