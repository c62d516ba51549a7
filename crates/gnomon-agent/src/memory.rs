//! What the guest's kernel says of its memory and of who waits.

use std::{fs, path::Path, time::Duration};

use gnomon_proto::report::{Pressure, Report};
use gnomon_terms::Bytes;

/// The guest now; what its kernel does not say is zero or absent.
pub fn look() -> Report {
    look_in(Path::new("/proc"))
}

fn look_in(proc: &Path) -> Report {
    let read = |name: &str| fs::read_to_string(proc.join(name)).unwrap_or_default();
    let meminfo = read("meminfo");
    let pressure = |name: &str, kind: &str| share(&read(&format!("pressure/{name}")), kind);
    Report {
        seq: 0,
        up: uptime(&read("uptime")),
        total: field(&meminfo, "MemTotal:"),
        available: field(&meminfo, "MemAvailable:"),
        free: field(&meminfo, "MemFree:"),
        pressure: pressure("cpu", "some").map(|cpu| Pressure {
            cpu,
            memory: pressure("memory", "some").unwrap_or(0),
            stalled: pressure("memory", "full").unwrap_or(0),
            io: pressure("io", "some").unwrap_or(0),
        }),
    }
}

/// A line of meminfo: `MemFree:   380016 kB`.
fn field(meminfo: &str, name: &str) -> Bytes {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    Bytes(kib.unwrap_or(0) << 10)
}

/// The first number of uptime: seconds with two digits.
fn uptime(text: &str) -> Duration {
    let seconds = text.split_whitespace().next().and_then(|word| word.parse::<f64>().ok());
    Duration::try_from_secs_f64(seconds.unwrap_or(0.0)).unwrap_or_default()
}

/// `some avg10=1.53 avg60=…` as 153.
fn share(text: &str, kind: &str) -> Option<u32> {
    let line = text.lines().find(|line| line.split(' ').next() == Some(kind))?;
    let percent: f64 = line.split(' ').find_map(|word| word.strip_prefix("avg10="))?.parse().ok()?;
    Some((percent.clamp(0.0, 100.0) * 100.0).round() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_understood() {
        let proc = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| fs::write(proc.path().join(name), text).expect("written");
        assert_eq!(look_in(proc.path()), Report::default(), "a guest that says nothing");
        write("uptime", "90.21 170.02\n");
        write("meminfo", "MemTotal:  498324 kB\nMemFree:   380016 kB\nMemAvailable:   401220 kB\nMemX: 1 kB\n");
        let plain = look_in(proc.path());
        assert_eq!((plain.up, plain.pressure), (Duration::from_millis(90_210), None));
        let kib = [plain.total, plain.free, plain.available].map(|bytes| bytes.0 >> 10);
        assert_eq!(kib, [498_324, 380_016, 401_220]);
        fs::create_dir(proc.path().join("pressure")).expect("a folder");
        write("pressure/cpu", "some avg10=1.53 avg60=0.20 avg300=0.00 total=9\nfull avg10=9.00 avg60=0 total=0\n");
        write("pressure/memory", "some avg10=100.00 avg60=0 total=1\nfull avg10=0.07 avg60=0 total=1\n");
        let pressed = look_in(proc.path()).pressure;
        assert_eq!(pressed, Some(Pressure { cpu: 153, memory: 10_000, stalled: 7, io: 0 }));
    }

    #[test]
    fn this_very_host_can_be_looked_at() {
        let report = look();
        assert!(report.total > Bytes(0) && report.available <= report.total, "{report}");
        assert_eq!(Report::parse(report.to_string().as_bytes()).map(|read| read.total), Ok(report.total));
    }
}
