//! Recorded traces as numbers. Missing files are told by name, and rows that cannot be read by their line.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, ensure};

use crate::demands::capture;

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
