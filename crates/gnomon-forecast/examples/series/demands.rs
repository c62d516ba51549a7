//! Recorded memory traces as demand of VMs on one grid of steps. Missing files are told by name, and rows that cannot be read
//! by their line. The replay of staged memory in gnomon-cycle reads the same.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

/// Demand of VMs on one grid of steps; what is missing is as the sample before.
pub struct Demands {
    /// By VM, by step.
    pub demand: Vec<Vec<f64>>,
    /// The most each may have.
    pub most: Vec<f64>,
}

impl Demands {
    /// So many of the VMs, spread evenly over the trace's numbering.
    pub fn pick(&self, number: usize) -> Demands {
        let vms = self.demand.len();
        let number = number.min(vms);
        let chosen = || (0..vms).filter(|at| at * number / vms != (at + 1) * number / vms);
        Demands {
            demand: chosen().map(|at| self.demand[at].clone()).collect(),
            most: chosen().map(|at| self.most[at]).collect(),
        }
    }

    /// The same where a guest keeps what it had for an hour.
    pub fn kept_for_an_hour(&self) -> Demands {
        let hour = |vm: &Vec<f64>| -> Vec<f64> {
            (0..vm.len()).map(|at| vm[at.saturating_sub(11)..=at].iter().copied().fold(0.0, f64::max)).collect()
        };
        Demands { demand: self.demand.iter().map(hour).collect(), most: self.most.clone() }
    }

    /// Pools of so many: VM 0, 5, 10 … together, for neighbours in the trace are often of one customer.
    pub fn pools(&self, pool: usize) -> Vec<Vec<usize>> {
        let vms = self.demand.len();
        let number = (vms / pool).max(1);
        (0..number).map(|at| (0..vms).filter(|vm| vm % number == at).collect()).collect()
    }
}

/// Seconds of a step of the memory traces.
const STEP: u64 = 300;
/// VMs with fewer of their samples than this, or less than so many MiB in the mean, are left out.
const COVERAGE: f64 = 0.93;
const LEAST_MIB: f64 = 64.0;

/// GWA-T-12 "rnd": VMs that were there nearly all the time and did something.
pub fn bitbrains(path: &Path) -> Result<Demands> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut vms: BTreeMap<u32, Vec<(u64, f64, f64)>> = BTreeMap::new();
    for (at, line) in BufReader::new(zstd::Decoder::new(file)?).lines().enumerate().skip(1) {
        let line = line?;
        let mut fields = line.split(',').map(str::parse::<f64>);
        let mut field = || fields.next()?.ok().filter(|field| field.is_finite() && *field >= 0.0);
        let sample = (|| Some((field()?, field()?, field()?, field()?)))();
        let (vm, time, most, used) = sample.with_context(|| format!("{} line {}: {line}", path.display(), at + 1))?;
        vms.entry(vm as u32).or_default().push((time as u64, most, used));
    }
    let times = || vms.values().flatten().map(|sample| sample.0);
    let (first, last) = times().min().zip(times().max()).context("the trace is empty")?;
    let steps = ((last - first) / STEP + 1) as usize;
    ensure!(steps < 1_000_000, "the trace is {steps} steps long");
    let mut demands = Demands { demand: Vec::new(), most: Vec::new() };
    for samples in vms.values() {
        let mean = samples.iter().map(|sample| sample.2).sum::<f64>() / samples.len() as f64;
        if samples.len() as f64 >= COVERAGE * steps as f64 && mean >= LEAST_MIB {
            demands.demand.push(grid(samples, first, steps));
            demands.most.push(samples.iter().map(|sample| sample.1.max(sample.2)).fold(0.0, f64::max));
        }
    }
    Ok(demands)
}

fn grid(samples: &[(u64, f64, f64)], first: u64, steps: usize) -> Vec<f64> {
    let mut grid = vec![f64::NAN; steps];
    for (time, _, used) in samples {
        grid[((time - first) / STEP) as usize] = *used;
    }
    let mut last = samples.first().map_or(0.0, |sample| sample.2);
    for value in &mut grid {
        last = if value.is_nan() { last } else { *value };
        *value = last;
    }
    grid
}

/// The Google cluster trace of 2011: memory of jobs in percent of a machine, a day.
pub fn google(path: &Path) -> Result<Demands> {
    ensure!(path.exists(), "{} is not there", path.display());
    let list = capture(Command::new("tar").arg("-tzf").arg(path))?;
    let names: Vec<&str> = list.lines().filter(|name| !name.ends_with('/')).collect();
    // One file after the other, in the order of the list; each begins where the one before has its 288 lines.
    let text = capture(Command::new("tar").arg("-xzOf").arg(path))?;
    let memory: Vec<f64> = text
        .lines()
        .enumerate()
        .map(|(at, line)| {
            let field = line.split_whitespace().nth(1).and_then(|field| field.parse::<f64>().ok());
            field.filter(|field| *field >= 0.0).with_context(|| format!("{} line {}: {line}", path.display(), at + 1))
        })
        .collect::<Result<_>>()?;
    ensure!(
        !names.is_empty() && memory.len().is_multiple_of(names.len()),
        "{} files with {} lines",
        names.len(),
        memory.len()
    );
    let demand: Vec<Vec<f64>> = memory.chunks(memory.len() / names.len()).map(<[f64]>::to_vec).collect();
    let most = demand.iter().map(|vm| vm.iter().copied().fold(100.0, f64::max)).collect();
    Ok(Demands { demand, most })
}

/// What a program writes to its standard output.
pub fn capture(command: &mut Command) -> Result<String> {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().with_context(|| format!("{command:?}"))?;
    let mut text = String::new();
    child.stdout.take().context("it has an output")?.read_to_string(&mut text)?;
    let status = child.wait()?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(text)
}
