//! `[memory]`: how much of this host may be staged for guests to come.

use std::time::Duration;

use gnomon_terms::Bytes;
use serde::Deserialize;

use super::ConfigError;

/// As typed.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawMemory {
    budget: Option<String>,
    floor: Option<String>,
    step: Option<u64>,
}

/// What is staged on this host, and when it is thought about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryConfig {
    /// The most that is staged for all trust groups together.
    pub budget: Bytes,
    /// Memory that stays available on the host, whatever is staged.
    pub floor: Bytes,
    /// A step of the forecasts' clock.
    pub step: Duration,
}

impl Default for MemoryConfig {
    /// 8 GiB staged at most and 2 GiB left, as the plane's own limits; steps of 5 minutes, as the traces have that the models
    /// were chosen by.
    fn default() -> MemoryConfig {
        MemoryConfig { budget: Bytes(8 << 30), floor: Bytes(2 << 30), step: Duration::from_secs(300) }
    }
}

impl RawMemory {
    pub(super) fn mean(self) -> Result<MemoryConfig, ConfigError> {
        let default = MemoryConfig::default();
        let step = self.step.map(Duration::from_secs).unwrap_or(default.step);
        if step.is_zero() || step > Duration::from_secs(3600) {
            let write = "seconds from 1 to 3600".to_string();
            return Err(ConfigError::Value { key: "memory.step", value: step.as_secs().to_string(), write });
        }
        Ok(MemoryConfig {
            budget: size("memory.budget", self.budget)?.unwrap_or(default.budget),
            floor: size("memory.floor", self.floor)?.unwrap_or(default.floor),
            step,
        })
    }
}

fn size(key: &'static str, text: Option<String>) -> Result<Option<Bytes>, ConfigError> {
    let read = |value: String| match value.parse::<Bytes>() {
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(ConfigError::Value { key, write: format!("write {}", error.expected), value }),
    };
    text.map(read).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_is_what_is_meant() {
        let read = |text: &str| toml::from_str::<RawMemory>(text).expect("TOML").mean();
        assert_eq!(read("").expect("defaults"), MemoryConfig::default());
        let config = read("budget = '1GiB'\nfloor = '512M'\nstep = 1").expect("good");
        assert_eq!((config.budget, config.floor, config.step.as_secs()), (Bytes(1 << 30), Bytes(512 << 20), 1));
        for bad in ["budget = 'much'", "step = 0", "step = 7200", "floor = '-1'"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
