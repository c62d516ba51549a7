//! Recorded traces as numbers. Missing files are told by name, and rows that cannot be read by their line.

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

/// GÉANT: for each of 529 flows its traffic in each interval of 15 minutes.
pub fn geant(path: &Path) -> Result<Vec<Vec<f64>>> {
    let text = unxz(path)?;
    let flow = |(at, line): (usize, &str)| -> Result<Vec<f64>> {
        let values = line.split_whitespace().map(str::parse::<f64>).collect::<Result<Vec<f64>, _>>();
        values.with_context(|| format!("{} line {}", path.display(), at + 1))
    };
    let flows: Vec<Vec<f64>> = text.lines().enumerate().map(flow).collect::<Result<_>>()?;
    let steps = flows.first().map_or(0, Vec::len);
    ensure!(steps > 0 && flows.iter().all(|flow| flow.len() == steps), "{}: flows differ in length", path.display());
    Ok(flows)
}

/// One check-in.
pub struct CheckIn {
    /// The week of a user, in the order of the file.
    pub week: u64,
    pub user: u64,
    pub latitude: f64,
    pub longitude: f64,
    pub weekday: u8,
    pub hour: u8,
    pub category: String,
    pub weather: String,
}

/// Foursquare check-ins in New York with the weather.
pub fn foursquare(path: &Path) -> Result<Vec<CheckIn>> {
    const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
    let text = unxz(path)?;
    let parse = |line: &str| -> Option<CheckIn> {
        let fields: Vec<&str> = line.split(',').collect();
        let [week, user, latitude, longitude, day, hour, _, category, _, _, weather] = fields[..] else {
            return None;
        };
        Some(CheckIn {
            week: week.parse().ok()?,
            user: user.parse().ok()?,
            latitude: latitude.parse().ok()?,
            longitude: longitude.parse().ok()?,
            weekday: DAYS.iter().position(|name| *name == day)? as u8,
            hour: hour.parse().ok()?,
            category: category.to_owned(),
            weather: weather.to_owned(),
        })
    };
    let lines = text.lines().enumerate().skip(1);
    lines
        .map(|(at, line)| parse(line).with_context(|| format!("{} line {}: {line}", path.display(), at + 1)))
        .collect()
}

fn unxz(path: &Path) -> Result<String> {
    ensure!(path.exists(), "{} is not there", path.display());
    capture(Command::new("xz").arg("-dc").arg(path))
}

fn capture(command: &mut Command) -> Result<String> {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().with_context(|| format!("{command:?}"))?;
    let mut text = String::new();
    child.stdout.take().context("it has an output")?.read_to_string(&mut text)?;
    let status = child.wait()?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(text)
}
