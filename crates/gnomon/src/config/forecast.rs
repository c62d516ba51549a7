//! What forecasts are told: the section `[forecast]`.

use std::path::{Path, PathBuf};

use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawForecast {
    pub(super) learn: bool,
    pub(super) model: Option<PathBuf>,
}

/// With which network forecasts of reads begin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ModelChoice {
    /// The one that is part of the program.
    #[default]
    Shipped,
    /// With none.
    Nothing,
    /// One in a file.
    File(PathBuf),
}

impl ModelChoice {
    /// As it is written: `shipped`, which is also meant when nothing is, `none`, or a file.
    pub fn of(written: Option<PathBuf>) -> ModelChoice {
        match written {
            None => ModelChoice::Shipped,
            Some(word) if word == Path::new("shipped") => ModelChoice::Shipped,
            Some(word) if word == Path::new("none") => ModelChoice::Nothing,
            Some(file) => ModelChoice::File(file),
        }
    }
}
