//! What a volume's loop has learned, kept in a file beside the volume, so that a new daemon begins where the last ended.
//!
//! ```text
//!   volume shown ──read──► Experience ──► its loop … every few minutes, and at the daemon's end ──► written anew
//!                   │ damaged, or of another version
//!                   └──► told in the log, set aside as .learned.bad, and the loop begins with nothing
//! ```
//! Nothing depends on it but how well forecasts begin: it is written whole (a new file, synced, renamed over the old one)
//! and believed only if its digest is right. A daemon that is killed loses what was learned since the last writing.
//!
//! The file: [`MAGIC`], the BLAKE3 digest of what follows (32 bytes), and an [`Experience`].

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use gnomon_forecast::{
    DEFAULT_BLOCKS_PER_UNIT,
    sequence::{Experience, ExperienceError, LARGEST_FILE},
};
use parking_lot::Mutex;

use super::keeper::{Keeper, VolumeHandle};
use crate::{
    api::ApiError,
    files::{self, with},
};

/// The first bytes of the file, with the version of what is around the experience; that has a version of its own.
const MAGIC: &[u8; 16] = b"gnomon learned 1";
/// How often what was learned is written: less than 1 MiB for each volume that was used meanwhile.
const EVERY: Duration = Duration::from_secs(300);

/// The file of one volume.
pub struct LearnedFile {
    path: PathBuf,
    state: Mutex<State>,
}

/// What became of the file.
#[derive(Default)]
struct State {
    /// The loop began with something that was learned before.
    before: bool,
    /// Of how many accesses that was learned.
    accesses_before: u64,
    /// Accesses that the loop had seen itself when it was written last.
    accesses: u64,
    /// The volume is gone, and nothing is written any more.
    removed: bool,
}

/// What the loop of a new volume begins with: nothing unless told.
#[derive(Debug, Default)]
pub struct Beginning {
    /// The volume that has learned it.
    pub like: Option<String>,
    /// What that is.
    pub experience: Experience,
}

impl Beginning {
    /// What a volume's loop has learned so far.
    pub async fn like(handle: &VolumeHandle) -> Result<Beginning, ApiError> {
        let experience = of(handle).await?;
        Ok(Beginning { like: (!experience.is_empty()).then(|| handle.record().name), experience })
    }
}

/// Why a file is not believed.
#[derive(Debug, thiserror::Error)]
enum LearnedError {
    #[error("it cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    #[error("it is not a file of what gnomon has learned, or one of another version")]
    Foreign,
    #[error("it is damaged: its digest is not that of its content")]
    Damaged,
    #[error(transparent)]
    Experience(#[from] ExperienceError),
}

impl LearnedFile {
    /// The file beside the volume at `volume`.
    pub fn beside(volume: &Path) -> LearnedFile {
        LearnedFile { path: with(volume, ".learned"), state: Mutex::default() }
    }

    /// What is in it; nothing when there is none, or one that cannot be believed.
    pub fn read(&self) -> Experience {
        let experience = match decode(&self.path) {
            Ok(experience) => experience.unwrap_or_default(),
            Err(error) => {
                self.set_aside(&error);
                Experience::default()
            }
        };
        self.begins_with(&experience);
        experience
    }

    /// The loop begins with this, whoever has learned it. Nothing is written.
    pub fn begins_with(&self, experience: &Experience) {
        let mut state = self.state.lock();
        (state.before, state.accesses_before) = (!experience.is_empty(), experience.accesses);
    }

    fn set_aside(&self, error: &LearnedError) {
        let aside = with(&self.path, ".bad");
        tracing::warn!(
            file = %self.path.display(), %error, aside = %aside.display(),
            "what the volume's loop had learned is not believed and set aside; it begins anew"
        );
        if let Err(error) = fs::rename(&self.path, &aside) {
            tracing::warn!(file = %self.path.display(), %error, "it cannot be set aside, and will be written over");
        }
    }

    /// Whether its loop began with something that was learned before.
    pub fn before(&self) -> bool {
        self.state.lock().before
    }

    /// Of how many accesses that was learned.
    pub fn accesses_before(&self) -> u64 {
        self.state.lock().accesses_before
    }

    /// Whether the loop has seen more than what was written, as of `accesses`.
    fn is_behind(&self, accesses: u64) -> bool {
        let state = self.state.lock();
        !state.removed && state.accesses != accesses
    }

    /// Writes what was learned from so many accesses. Durable when it returns. A volume that is gone has no file.
    pub fn write(&self, experience: &Experience, accesses: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        if !state.removed && !experience.is_empty() {
            let body = experience.encode();
            files::replace(&self.path, &[MAGIC, blake3::hash(&body).as_bytes(), &body])?;
        }
        state.accesses = accesses;
        Ok(())
    }

    /// The volume is gone, and this with it.
    pub fn remove(&self) -> io::Result<()> {
        self.state.lock().removed = true;
        let files = [self.path.clone(), with(&self.path, ".bad"), with(&self.path, ".new")];
        files.iter().try_for_each(|file| match fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        })
    }
}

/// What a file holds, if there is one. Units of another size than ours are as nothing.
fn decode(path: &Path) -> Result<Option<Experience>, LearnedError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut bytes = Vec::new();
    // Nothing of ours is larger; what is cut off has another digest.
    file.take(LARGEST_FILE as u64).read_to_end(&mut bytes)?;
    let (magic, rest) = bytes.split_first_chunk().ok_or(LearnedError::Foreign)?;
    let (digest, body) = rest.split_first_chunk::<32>().ok_or(LearnedError::Foreign)?;
    if magic != MAGIC {
        return Err(LearnedError::Foreign);
    }
    if blake3::hash(body) != blake3::Hash::from_bytes(*digest) {
        return Err(LearnedError::Damaged);
    }
    let experience = Experience::decode(body)?;
    Ok(Some(experience).filter(|experience| experience.blocks_per_unit == DEFAULT_BLOCKS_PER_UNIT))
}

/// Keeps what the loops of all volumes learn, again and again; never returns.
pub async fn keep(keeper: &Keeper) {
    loop {
        tokio::time::sleep(EVERY).await;
        keep_now(keeper).await;
    }
}

/// Keeps what the loops of all volumes have learned that were used since the last time.
pub async fn keep_now(keeper: &Keeper) {
    for handle in keeper.all() {
        let accesses = handle.watcher.counts().total();
        if !handle.learned.is_behind(accesses) {
            continue;
        }
        let name = handle.record().name;
        if let Err(error) = keep_one(handle, accesses).await {
            tracing::warn!(volume = name, %error, "what its loop has learned was not kept");
        }
    }
}

async fn keep_one(handle: Arc<VolumeHandle>, accesses: u64) -> Result<(), ApiError> {
    let experience = of(&handle).await?;
    let write = move || handle.learned.write(&experience, accesses);
    Ok(tokio::task::spawn_blocking(write).await.map_err(ApiError::internal)??)
}

/// What a volume's loop has learned so far.
pub async fn of(handle: &VolumeHandle) -> Result<Experience, ApiError> {
    let experience = handle.watcher.run(|cycle, _| cycle.experience()).await?;
    Ok(Experience { accesses: accesses_of(handle), ..experience })
}

/// Of how many accesses it has learned: its own, and those of whoever it began like.
pub fn accesses_of(handle: &VolumeHandle) -> u64 {
    handle.learned.accesses_before().saturating_add(handle.watcher.counts().total())
}

#[cfg(test)]
mod tests {
    use gnomon_forecast::{UnitIndex, sequence::Recording};

    use super::*;

    fn boot() -> Experience {
        let units: Vec<UnitIndex> = (0..100).map(|n| UnitIndex(n * 31 % 101)).collect();
        Experience {
            blocks_per_unit: 16,
            accesses: 7,
            recordings: vec![Recording::of(&units)],
            ..Experience::default()
        }
    }

    #[test]
    fn what_is_written_is_read_and_goes_with_the_volume() {
        let dir = tempfile::tempdir().expect("a folder");
        let volume = dir.path().join("root.raw");
        let file = LearnedFile::beside(&volume);
        assert!(file.read().is_empty() && !file.before());
        file.write(&boot(), 100).expect("written");
        assert!(!file.is_behind(100) && file.is_behind(101));
        let again = LearnedFile::beside(&volume);
        assert!(again.read() == boot() && again.before() && again.accesses_before() == 7);
        again.remove().expect("removed");
        again.write(&boot(), 7).expect("passed over");
        assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 0, "a volume that is gone has no file");
    }

    #[test]
    fn what_cannot_be_believed_is_set_aside() {
        let dir = tempfile::tempdir().expect("a folder");
        let (volume, file) = (dir.path().join("root.raw"), dir.path().join("root.raw.learned"));
        LearnedFile::beside(&volume).write(&boot(), 1).expect("written");
        let good = fs::read(&file).expect("a file");
        let flipped = |at: usize| {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            bytes
        };
        for bad in [flipped(3), flipped(20), flipped(good.len() - 1), good[..40].to_vec(), Vec::new()] {
            fs::write(&file, &bad).expect("written");
            let learned = LearnedFile::beside(&volume);
            assert!(learned.read().is_empty() && !learned.before());
            assert!(!file.exists() && fs::read(with(&file, ".bad")).expect("set aside") == bad);
        }
        fs::write(&file, &good).expect("written");
        assert!(LearnedFile::beside(&volume).read() == boot());
    }
}
