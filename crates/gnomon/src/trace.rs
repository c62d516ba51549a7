//! Recordings of accesses: made from a running volume, looked at, rewritten.

use std::{
    fs::File,
    io::{Read, Write},
    path::Path,
    time::Duration,
};

use gnomon_forecast::{
    BlockMap,
    trace::{Format, Trace, encode_line},
};
use gnomon_terms::{BlockCount, Op};
use serde::Serialize;
use tokio::{signal, time::Instant};

use crate::{
    api::{ApiError, client::Client},
    daemon::watcher::Recording,
};

/// Largest recording read: 1 GiB of text is 40 million accesses, hours of a busy disk.
const LARGEST: u64 = 1 << 30;

/// Blocks that may be counted as touched in `info`: a map of 16 TiB takes 512 MiB.
const LARGEST_SPAN: u64 = 1 << 32;

/// How hard recordings are compressed: zstd's default.
const COMPRESSION: i32 = 3;

/// What a recording holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Info {
    /// The file.
    pub trace: String,
    /// Its format.
    pub format: String,
    /// Requests.
    pub accesses: u64,
    /// Of these, reads.
    pub reads: u64,
    /// Of these, writes.
    pub writes: u64,
    /// Of these, trims and write-zeroes.
    pub discards: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Bytes touched at least once.
    pub touched_bytes: u64,
    /// Where the last touched block ends.
    pub end_bytes: u64,
    /// From the first request to the last.
    pub seconds: f64,
    /// Accesses that could not be recorded; only known while recording.
    pub lost: Option<u64>,
}

/// Reads a recording in any format we know, compressed or not; its format is what the name says.
pub fn load(file: &Path) -> Result<Trace, ApiError> {
    load_as(file, None)
}

/// Reads a recording of the given format, whatever its name.
pub fn load_as(file: &Path, format: Option<Format>) -> Result<Trace, ApiError> {
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let format = format.map_or_else(|| format_of(file), Ok)?;
    let open = File::open(file).map_err(|error| unreadable(file, &error))?;
    let mut bytes = Vec::new();
    let read = match name.ends_with(".zst") {
        true => zstd::Decoder::new(open).and_then(|decoder| decoder.take(LARGEST + 1).read_to_end(&mut bytes)),
        false => open.take(LARGEST + 1).read_to_end(&mut bytes),
    };
    read.map_err(|error| unreadable(file, &error))?;
    if bytes.len() as u64 > LARGEST {
        return Err(ApiError::refused(format!("{} holds more than 1 GiB", file.display())).then("record less of it"));
    }
    Ok(Trace::decode(format, &bytes)?)
}

fn format_of(file: &Path) -> Result<Format, ApiError> {
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Format::of_name(&name).ok_or_else(|| {
        ApiError::usage(format!("the format of {} is not known by its name", file.display()))
            .then(format!("say it with --format, or name the file by it: {}, with .zst if compressed", formats()))
    })
}

/// The names of the formats that are read.
fn formats() -> String {
    Format::ALL.map(|(_, name)| format!(".{name}")).join(", ")
}

/// Reads `csv`, `vscsi` and the other names of formats.
pub fn parse_format(text: &str) -> Result<Format, String> {
    Format::named(text.trim_start_matches('.')).ok_or_else(|| format!("'{text}' is not one of {}", formats()))
}

/// What tells a file from others: its BLAKE3 hash.
pub fn digest(file: &Path) -> Result<String, ApiError> {
    let mut hasher = blake3::Hasher::new();
    let mut open = File::open(file).map_err(|error| unreadable(file, &error))?;
    std::io::copy(&mut open, &mut hasher).map_err(|error| unreadable(file, &error))?;
    Ok(hasher.finalize().to_hex().to_string())
}

fn unreadable(file: &Path, error: &std::io::Error) -> ApiError {
    ApiError::unavailable(format!("{} cannot be read: {error}", file.display()))
}

/// What the recording in `file` holds.
pub fn info(file: &Path, format: Option<Format>) -> Result<Info, ApiError> {
    let format = format.map_or_else(|| format_of(file), Ok)?;
    Ok(describe(&load_as(file, Some(format))?, file, format.name().to_string()))
}

/// Rewrites a recording as CSV.
pub fn convert(file: &Path, format: Option<Format>, out: &Path) -> Result<Info, ApiError> {
    let trace = load_as(file, format)?;
    let mut writer = Writer::create(out)?;
    writer.text(&trace.encode())?;
    writer.finish()?;
    Ok(describe(&trace, out, "csv".to_string()))
}

/// Records a volume's accesses until the time is over or ctrl-c.
pub async fn record(client: &Client, volume: &str, out: &Path, time: Option<Duration>) -> Result<Info, ApiError> {
    let mut writer = Writer::create(out)?;
    writer.text("t_us,op,offset,length\n")?;
    let query = time.map(|time| format!("?for_s={}", time.as_secs_f64())).unwrap_or_default();
    let mut lines = client.lines(&format!("/v1/volumes/{volume}/trace{query}")).await?;
    let mut lost = 0;
    loop {
        tokio::select! {
            line = lines.next() => match line? {
                Some(line) => {
                    lost += line.strip_prefix(LOST).and_then(|count| count.parse::<u64>().ok()).unwrap_or(0);
                    writer.text(&format!("{line}\n"))?;
                }
                None => break,
            },
            _ = signal::ctrl_c() => break,
        }
    }
    writer.finish()?;
    Ok(Info { lost: Some(lost), ..info(out, None)? })
}

/// A volume's accesses as lines of CSV, for as long as wished; times are from the daemon's start. What a slow reader
/// has lost is told in lines of its own, which readers of traces pass over.
pub fn follow(
    recording: Recording,
    for_s: Option<f64>,
) -> impl futures_util::Stream<Item = Result<String, std::convert::Infallible>> {
    let deadline = for_s.filter(|s| s.is_finite() && *s >= 0.0).map(|s| Instant::now() + Duration::from_secs_f64(s));
    futures_util::stream::unfold((recording, deadline), |(mut recording, deadline)| async move {
        let batch = match deadline {
            Some(deadline) => tokio::time::timeout_at(deadline, recording.next()).await.ok()??,
            None => recording.next().await?,
        };
        let mut text = String::new();
        batch.iter().for_each(|access| encode_line(access, &mut text));
        match recording.take_lost() {
            0 => {}
            lost => text.push_str(&format!("{LOST}{lost}\n")),
        }
        Some((Ok(text), (recording, deadline)))
    })
}

/// Begins a line that says how many accesses were lost.
const LOST: &str = "# lost ";

fn describe(trace: &Trace, file: &Path, format: String) -> Info {
    let mut info = Info { trace: file.display().to_string(), format, ..Info::default() };
    let end = trace.accesses.iter().map(|access| access.extent.end().0).max().unwrap_or(0);
    let mut touched = BlockMap::empty(BlockCount(end.min(LARGEST_SPAN)));
    for access in &trace.accesses {
        info.accesses += 1;
        touched.insert(access.extent);
        let bytes = access.extent.bytes().0;
        match access.op {
            Op::Read => (info.reads, info.read_bytes) = (info.reads + 1, info.read_bytes + bytes),
            Op::Write => (info.writes, info.written_bytes) = (info.writes + 1, info.written_bytes + bytes),
            Op::Discard => info.discards += 1,
        }
    }
    info.touched_bytes = touched.count().bytes().0;
    info.end_bytes = BlockCount(end).bytes().0;
    info.seconds = trace.accesses.last().map_or(0.0, |access| access.at.as_secs_f64());
    info
}

/// Writes text, compressed when the name says so.
enum Writer {
    Plain(std::io::BufWriter<File>),
    Zstd(Box<zstd::Encoder<'static, File>>),
}

impl Writer {
    fn create(out: &Path) -> Result<Writer, ApiError> {
        if !matches!(format_of(out)?, Format::Csv) {
            return Err(
                ApiError::usage(format!("{} is written as CSV", out.display())).then("name it .csv or .csv.zst")
            );
        }
        let file = File::create(out)?;
        Ok(match out.extension().is_some_and(|ending| ending == "zst") {
            true => Writer::Zstd(Box::new(zstd::Encoder::new(file, COMPRESSION)?)),
            false => Writer::Plain(std::io::BufWriter::new(file)),
        })
    }

    fn text(&mut self, text: &str) -> Result<(), ApiError> {
        match self {
            Writer::Plain(file) => file.write_all(text.as_bytes())?,
            Writer::Zstd(file) => file.write_all(text.as_bytes())?,
        }
        Ok(())
    }

    fn finish(self) -> Result<(), ApiError> {
        match self {
            Writer::Plain(mut file) => file.flush()?,
            Writer::Zstd(file) => file.finish()?.flush()?,
        }
        Ok(())
    }
}

/// Reads `90s`, `5m`, `2h` or plain seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let expected = || format!("'{text}' is not a time: write 90s, 5m or 2h");
    let (number, factor) = match text.trim().char_indices().next_back() {
        Some((at, 's')) => (&text[..at], 1.0),
        Some((at, 'm')) => (&text[..at], 60.0),
        Some((at, 'h')) => (&text[..at], 3600.0),
        _ => (text, 1.0),
    };
    let seconds: f64 = number.trim().parse().map_err(|_| expected())?;
    Duration::try_from_secs_f64(seconds * factor).map_err(|_| expected())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, seconds) in [("90s", 90), ("5m", 300), ("2h", 7200), ("7", 7)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "s", "-1s", "soon", "1e99h"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_recording_is_described_and_rewritten() {
        let dir = tempfile::tempdir().expect("dir");
        let (plain, packed) = (dir.path().join("a.csv"), dir.path().join("b.csv.zst"));
        std::fs::write(&plain, "t_us,op,offset,length\n0,R,0,4096\n500000,W,8192,8192\n").expect("write");
        let info = convert(&plain, None, &packed).expect("convert");
        assert_eq!((info.reads, info.writes, info.touched_bytes, info.end_bytes), (1, 1, 12288, 16384));
        assert_eq!(load(&packed).expect("load"), load(&plain).expect("load"));
        assert!(load(&dir.path().join("c.txt")).is_err());
        assert_eq!(load_as(&plain, Some(Format::Csv)).expect("load"), load(&plain).expect("load"));
        assert!(load_as(&plain, Some(Format::Iolog)).is_err());
        assert_ne!(digest(&plain).expect("digest"), digest(&packed).expect("digest"));
    }
}
