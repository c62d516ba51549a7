//! Images in and out: raw and qcow2 become a volume's raw file and back, by way of `qemu-img`.
//!
//! A volume appears under its name only when it is whole: bytes gather in `NAME.partial`, which is removed when the
//! import fails or is cancelled, and renamed when it is durable. Holes stay holes.
//!
//! An image is not trusted: one that leans on other files (a backing or data file) would copy whatever file of this
//! host it names, so it is refused, as is an encrypted one. All calls block; run them off the async runtime.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read},
    ops::ControlFlow,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    thread,
};

use gnomon_terms::{Bytes, ErrorKind};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with, statvfs},
    io::{Errno, retry_on_intr},
};
use serde::Deserialize;

/// Kinds of image that are read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The disk's bytes and nothing else.
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
}

impl Format {
    /// What qemu-img calls it.
    pub fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        }
    }
}

/// What an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageFacts {
    /// Its kind.
    pub format: Format,
    /// Size of the disk it holds.
    pub size: Bytes,
    /// Bytes of that disk that hold data: what a thin copy takes.
    pub data: Bytes,
}

/// Why an image could not be taken in or given out. Nothing is left of the attempt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// qemu-img could not be started.
    #[error("cannot run qemu-img: install QEMU's tools (Debian: qemu-utils)")]
    NoTool(#[source] io::Error),
    /// qemu-img ran and complained.
    #[error("qemu-img could not {deed} {path}: {complaint}")]
    Tool {
        /// inspect, map or convert.
        deed: &'static str,
        /// Which image.
        path: PathBuf,
        /// Its last words.
        complaint: String,
    },
    /// A file could not be read, written or renamed.
    #[error("cannot {deed} {path}")]
    Io {
        /// What was tried.
        deed: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Not a kind of image that is taken.
    #[error("{path} is a {format} image: convert it to raw or qcow2 first")]
    UnknownFormat {
        /// Which image.
        path: PathBuf,
        /// What qemu-img takes it for.
        format: String,
    },
    /// The image is not whole by itself.
    #[error(
        "{path} needs {other}, which an image of unknown origin must not choose: flatten it with qemu-img convert"
    )]
    NotWhole {
        /// Which image.
        path: PathBuf,
        /// The file it names.
        other: String,
    },
    /// The image is encrypted.
    #[error("{path} is encrypted: decrypt it with qemu-img convert first")]
    Encrypted {
        /// Which image.
        path: PathBuf,
    },
    /// The volume would be smaller than the image.
    #[error("{path} holds a disk of {size}, which does not fit into {asked}: shrink it in the guest first")]
    WouldCut {
        /// Which image.
        path: PathBuf,
        /// Size of its disk.
        size: Bytes,
        /// Size that was asked for.
        asked: Bytes,
    },
    /// The data does not fit.
    #[error("{path} needs {needed} and its file system has {free} left: free some space or choose another place")]
    NoSpace {
        /// Where it should go.
        path: PathBuf,
        /// Bytes of data.
        needed: Bytes,
        /// Bytes that may be used.
        free: Bytes,
    },
    /// Something is there already.
    #[error("{path} is there already: choose another name or remove it")]
    Taken {
        /// Which file.
        path: PathBuf,
    },
    /// Another import or export is writing it.
    #[error("{path} is being written already: wait for that to end, or choose another name")]
    Busy {
        /// Which file.
        path: PathBuf,
    },
    /// The caller wanted no more.
    #[error("cancelled; nothing was left behind")]
    Cancelled,
}

impl ImageError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ImageError::NoTool(_) | ImageError::Io { .. } | ImageError::NoSpace { .. } => ErrorKind::Unavailable,
            ImageError::Tool { .. } => ErrorKind::Corrupt,
            _ => ErrorKind::Refused,
        }
    }
}

/// Told several times a second: the share that is done, 0 to 1. Says whether to go on.
pub type OnProgress<'a> = &'a mut dyn FnMut(f64) -> ControlFlow<()>;

/// What is to become a volume.
#[derive(Clone, Debug)]
pub struct Import {
    /// The image.
    pub from: PathBuf,
    /// Its kind; `None` looks. Say it for images a guest had its hands on: a raw disk can be made to look like qcow2.
    pub format: Option<Format>,
    /// The volume's raw file, which must not be there yet.
    pub to: PathBuf,
    /// Size of the volume, at least the image's; `None` keeps the image's. What is added reads as zeroes.
    pub size: Option<Bytes>,
}

impl Import {
    /// Checks without writing anything whether [`Import::run`] could succeed now.
    pub fn check(&self) -> Result<ImageFacts, ImageError> {
        let facts = inspect(&self.from, self.format)?;
        if let Some(asked) = self.size.filter(|&asked| asked < facts.size) {
            return Err(ImageError::WouldCut { path: self.from.clone(), size: facts.size, asked });
        }
        check_target(&self.to, facts.data)?;
        Ok(facts)
    }

    /// Copies the image; returns the volume's size. The volume is durable when this returns.
    pub fn run(&self, progress: OnProgress<'_>) -> Result<Bytes, ImageError> {
        let facts = self.check()?;
        let size = self.size.unwrap_or(facts.size);
        let copy = Copy { from: &self.from, format: facts.format, to: &self.to, into: Format::Raw };
        copy.run(Some(size), progress)?;
        Ok(size)
    }
}

/// Writes the volume in the raw file `from` as an image. Nobody may write the volume meanwhile.
pub fn export(from: &Path, to: &Path, into: Format, progress: OnProgress<'_>) -> Result<(), ImageError> {
    let facts = inspect(from, Some(Format::Raw))?;
    check_target(to, facts.data)?;
    Copy { from, format: Format::Raw, to, into }.run(None, progress)
}

/// What qemu-img says of an image. Refuses what must not be taken; see the module's page.
pub fn inspect(path: &Path, format: Option<Format>) -> Result<ImageFacts, ImageError> {
    let path = real(path)?;
    let mut args = vec!["info", "--output=json"];
    args.extend(format.iter().flat_map(|format| ["-f", format.name()]));
    let told: Info = ask("inspect", &path, &args)?;
    let format = told.check(&path)?;
    let map: Vec<Mapped> = ask("map", &path, &["map", "--output=json", "-f", format.name()])?;
    let data = map.iter().filter(|run| run.data && !run.zero).fold(0u64, |sum, run| sum.saturating_add(run.length));
    Ok(ImageFacts { format, size: Bytes(told.virtual_size), data: Bytes(data) })
}

/// `qemu-img info --output=json`, as far as it matters.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    format: String,
    virtual_size: u64,
    #[serde(default)]
    encrypted: bool,
    backing_filename: Option<String>,
    format_specific: Option<Specific>,
}

#[derive(Deserialize)]
struct Specific {
    data: Option<SpecificData>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct SpecificData {
    data_file: Option<String>,
}

/// One line of `qemu-img map --output=json`.
#[derive(Deserialize)]
struct Mapped {
    length: u64,
    zero: bool,
    data: bool,
}

impl Info {
    fn check(&self, path: &Path) -> Result<Format, ImageError> {
        let path = path.to_path_buf();
        let data_file = self.format_specific.as_ref().and_then(|specific| specific.data.as_ref()?.data_file.clone());
        if let Some(other) = self.backing_filename.clone().or(data_file) {
            return Err(ImageError::NotWhole { path, other });
        }
        if self.encrypted {
            return Err(ImageError::Encrypted { path });
        }
        match self.format.as_str() {
            "raw" => Ok(Format::Raw),
            "qcow2" => Ok(Format::Qcow2),
            other => Err(ImageError::UnknownFormat { path, format: other.to_string() }),
        }
    }
}

/// One run of `qemu-img convert`.
struct Copy<'a> {
    from: &'a Path,
    format: Format,
    to: &'a Path,
    into: Format,
}

impl Copy<'_> {
    fn run(&self, size: Option<Bytes>, progress: OnProgress<'_>) -> Result<(), ImageError> {
        let partial = Partial::claim(with_suffix(self.to, ".partial"), self.to)?;
        self.convert(&partial.path, progress)?;
        partial.finish(self.to, size)
    }

    fn convert(&self, to: &Path, progress: OnProgress<'_>) -> Result<(), ImageError> {
        let from = real(self.from)?;
        let mut child = Command::new("qemu-img")
            // 4 KiB of zeroes become a hole, the grain at which a guest discards.
            .args(["convert", "-p", "-S", "4096", "-f", self.format.name(), "-O", self.into.name()])
            .args([&from, &to.to_path_buf()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(ImageError::NoTool)?;
        let stderr = child.stderr.take().expect("it was asked for");
        let complaint = thread::spawn(move || last_words(stderr));
        let stdout = child.stdout.take().expect("it was asked for");
        let followed = follow(stdout, progress);
        let failed = |source| ImageError::Io { deed: "follow qemu-img on", path: from.clone(), source };
        if !matches!(followed, Ok(ControlFlow::Continue(()))) {
            end(&mut child);
        }
        let status = child.wait().map_err(failed)?;
        let complaint = complaint.join().expect("reading what it says does not panic");
        match followed.map_err(failed)? {
            ControlFlow::Break(()) => Err(ImageError::Cancelled),
            ControlFlow::Continue(()) if status.success() => Ok(()),
            ControlFlow::Continue(()) => Err(ImageError::Tool { deed: "convert", path: from.clone(), complaint }),
        }
    }
}

/// A file that is removed unless it is finished. While it is held nobody else may use its name.
struct Partial {
    path: PathBuf,
    /// Locked. What a crash left behind is locked by nobody, and is used again.
    _held: File,
}

impl Partial {
    fn claim(path: PathBuf, name: &Path) -> Result<Partial, ImageError> {
        let failed = |source| ImageError::Io { deed: "create", path: path.clone(), source };
        let held = OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        match flock(&held, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Partial { path, _held: held }),
            Err(Errno::WOULDBLOCK) => Err(ImageError::Busy { path: name.to_path_buf() }),
            Err(error) => Err(failed(error.into())),
        }
    }

    fn finish(&self, name: &Path, size: Option<Bytes>) -> Result<(), ImageError> {
        let failed = |deed| move |source| ImageError::Io { deed, path: name.to_path_buf(), source };
        let file = OpenOptions::new().write(true).open(&self.path).map_err(failed("open"))?;
        if let Some(Bytes(size)) = size {
            file.set_len(size).map_err(failed("resize"))?;
        }
        file.sync_all().map_err(failed("make durable"))?;
        renameat_with(CWD, &self.path, CWD, name, RenameFlags::NOREPLACE).map_err(|error| match error {
            Errno::EXIST => ImageError::Taken { path: name.to_path_buf() },
            error => failed("rename")(error.into()),
        })?;
        // The name is durable only with its folder.
        File::open(folder(name)).and_then(|folder| folder.sync_all()).map_err(failed("make durable"))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After `finish` there is nothing under this name any more.
        let _ = fs::remove_file(&self.path);
    }
}

fn check_target(to: &Path, needed: Bytes) -> Result<(), ImageError> {
    if to.symlink_metadata().is_ok() {
        return Err(ImageError::Taken { path: to.to_path_buf() });
    }
    let failed = |source: io::Error| ImageError::Io { deed: "measure", path: folder(to), source };
    let system = statvfs(folder(to)).map_err(|error| failed(error.into()))?;
    let free = Bytes(system.f_bavail.saturating_mul(system.f_frsize));
    if needed > free {
        return Err(ImageError::NoSpace { path: to.to_path_buf(), needed, free });
    }
    Ok(())
}

/// The absolute path: qemu-img takes names with a colon for addresses of remote disks.
fn real(path: &Path) -> Result<PathBuf, ImageError> {
    path.canonicalize().map_err(|source| ImageError::Io { deed: "find", path: path.to_path_buf(), source })
}

fn folder(of: &Path) -> PathBuf {
    match of.parent() {
        Some(parent) if parent != Path::new("") => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = folder(path).join(path.file_name().unwrap_or_default()).into_os_string();
    name.push(suffix);
    PathBuf::from(name)
}

/// Runs qemu-img on an image and reads the JSON it prints.
fn ask<T: for<'de> Deserialize<'de>>(deed: &'static str, path: &Path, args: &[&str]) -> Result<T, ImageError> {
    let output =
        Command::new("qemu-img").args(args).arg(path).stdin(Stdio::null()).output().map_err(ImageError::NoTool)?;
    let complain = |complaint: String| ImageError::Tool { deed, path: path.to_path_buf(), complaint };
    if !output.status.success() {
        return Err(complain(last_words(&output.stderr[..])));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| complain(format!("its answer is not understood: {error}")))
}

/// Passes progress on until qemu-img closes its output or the caller wants no more.
fn follow(mut stdout: ChildStdout, progress: OnProgress<'_>) -> io::Result<ControlFlow<()>> {
    const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
    let (mut done, mut bytes) = (0.0, [0; 256]);
    loop {
        if progress(done).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        if retry_on_intr(|| poll(&mut [PollFd::new(&stdout, PollFlags::IN)], Some(&TICK)))? == 0 {
            continue;
        }
        match stdout.read(&mut bytes)? {
            0 => return Ok(ControlFlow::Continue(())),
            len => done = read_progress(&bytes[..len]).unwrap_or(done),
        }
    }
}

/// The last complete "(12.34/100%)" as a share.
fn read_progress(bytes: &[u8]) -> Option<f64> {
    let text = String::from_utf8_lossy(bytes);
    let (before, _) = text.rsplit_once("/100%)")?;
    let (_, number) = before.rsplit_once('(')?;
    let percent: f64 = number.trim().parse().ok()?;
    (0.0..=100.0).contains(&percent).then_some(percent / 100.0)
}

/// What a program said, at most its first 4 KiB; the rest is read and dropped so that it does not wait.
fn last_words(mut from: impl Read) -> String {
    let mut words = Vec::new();
    // A pipe that breaks has no more to say.
    let _ = from.by_ref().take(4096).read_to_end(&mut words);
    let _ = io::copy(&mut from, &mut io::sink());
    String::from_utf8_lossy(&words).trim().to_string()
}

fn end(child: &mut Child) {
    // Fails only when it has ended by itself.
    let _ = child.kill();
}

/// Bytes a file takes on its file system.
pub fn allocated(path: &Path) -> io::Result<Bytes> {
    const STAT_BLOCK: u64 = 512;
    Ok(Bytes(path.metadata()?.blocks() * STAT_BLOCK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_from_what_qemu_img_prints() {
        let table: [(&[u8], Option<f64>); 6] = [
            (b"    (0.00/100%)\r", Some(0.0)),
            (b"    (12.50/100%)\r    (25.00/100%)\r", Some(0.25)),
            (b"    (100.00/100%)\r\n", Some(1.0)),
            (b"50/100%)\r    (62.", None),
            (b"(nan/100%)", None),
            (b"\xff\xfe", None),
        ];
        for (bytes, want) in table {
            assert_eq!(read_progress(bytes), want, "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_name_without_folder_is_here() {
        assert_eq!(folder(Path::new("disk.raw")), Path::new("."));
        assert_eq!(with_suffix(Path::new("/a/disk.raw"), ".partial"), Path::new("/a/disk.raw.partial"));
    }
}
