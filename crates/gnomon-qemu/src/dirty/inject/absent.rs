//! Where there is no stub for the processor: nothing can be injected.

use std::{convert::Infallible, sync::atomic::AtomicBool};

use super::InjectError;

/// There is none.
pub(in super::super) struct Session(Infallible);

impl Session {
    pub(super) fn run<T>(
        _: i32,
        _: &str,
        _: &AtomicBool,
        _: impl FnOnce(&mut Session) -> Result<T, InjectError>,
    ) -> Result<T, InjectError> {
        Err(InjectError::Architecture)
    }

    pub(in super::super) fn call(&mut self, _: u64, _: [u64; 3]) -> Result<Result<u64, i32>, InjectError> {
        match self.0 {}
    }

    pub(in super::super) fn put(&mut self, _: &[u64]) -> Result<u64, InjectError> {
        match self.0 {}
    }
}
