//! What a replay's blend is told to know beforehand: `--model`, `--boot`, `--learn`.

use std::path::{Path, PathBuf};

use gnomon_forecast::{
    DEFAULT_BLOCKS_PER_UNIT, Geometry,
    sequence::{Knowledge, Model, Recording, path_of, shipped},
    trace::Trace,
};
use gnomon_terms::BlockCount;

use crate::{api::ApiError, config::ModelChoice, trace};

/// Options that `replay` and `compare` share.
#[derive(Debug, Default, clap::Args)]
pub struct KnowledgeArgs {
    /// A network that `gnomon forecast train` made, or `shipped`: the one that new volumes begin with
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// A recording of an earlier boot of the same volume; may be given up to four times
    #[arg(long, value_name = "TRACE")]
    boot: Vec<PathBuf>,
    /// Let the network go on learning, or begin one, while the recording is replayed
    #[arg(long)]
    learn: bool,
}

impl KnowledgeArgs {
    /// Reads the files.
    pub(super) fn load(&self) -> Result<Knowledge, ApiError> {
        let boots: Result<Vec<Recording>, ApiError> = self.boot.iter().map(|file| boot(file)).collect();
        let model = match self.model.clone().map(|file| ModelChoice::of(Some(file))) {
            Some(ModelChoice::File(file)) => Some(load_model(&file)?),
            Some(ModelChoice::Shipped) => Some(shipped()),
            Some(ModelChoice::Nothing) | None => None,
        };
        Ok(Knowledge { model, recordings: boots?, learns: self.learn, ..Knowledge::default() })
    }
}

/// Whether the model was trained on the second half of this recording, where replays begin to count.
pub(super) fn saw_the_future(knowledge: &Knowledge, file: &Path) -> Result<bool, ApiError> {
    let Some(model) = &knowledge.model else { return Ok(false) };
    let digest = trace::digest(file)?;
    Ok(model.about.traces.iter().any(|source| source.digest == digest && source.head > 0.5))
}

fn load_model(file: &Path) -> Result<Model, ApiError> {
    let bytes = read_bounded(file)?;
    Model::decode(&bytes).map_err(|error| {
        let kind = error.kind();
        ApiError::new(kind.into(), format!("{}: {error}", file.display()))
    })
}

/// A file that cannot be larger than a model is.
pub(super) fn read_bounded(file: &Path) -> Result<Vec<u8>, ApiError> {
    use std::io::Read;
    let unreadable = |error| ApiError::unavailable(format!("{} cannot be read: {error}", file.display()));
    let mut bytes = Vec::new();
    let open = std::fs::File::open(file).map_err(unreadable)?;
    // One byte more than is believed, so that a larger file is told as one.
    let most = gnomon_forecast::sequence::LARGEST_FILE as u64 + 1;
    open.take(most).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

fn boot(file: &Path) -> Result<Recording, ApiError> {
    let recorded = trace::load(file)?;
    Ok(Recording::of(&path_of(geometry_of(&recorded)?, &recorded.accesses)))
}

/// The units of a recording: its span, cut as volumes are.
pub(super) fn geometry_of(recorded: &Trace) -> Result<Geometry, ApiError> {
    let end = recorded.accesses.iter().map(|access| access.extent.end().0).max().unwrap_or(0).max(1);
    Geometry::new(BlockCount(end), DEFAULT_BLOCKS_PER_UNIT)
        .map_err(|error| ApiError::new(error.kind().into(), error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_network_is_of_the_recordings_beside_it_and_they_are_told_from_others() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../gnomon-forecast/data");
        let args = KnowledgeArgs { model: Some("shipped".into()), ..KnowledgeArgs::default() };
        let knowledge = args.load().expect("it is part of the program");
        let seen = |name: &str| saw_the_future(&knowledge, &data.join(name)).expect("a recording");
        let told = ["vm_pg_web.csv.zst", "vm_boot_1.csv.zst", "vm_boot_2.csv.zst"].map(seen);
        assert_eq!(told, [true, true, false]);
    }
}
