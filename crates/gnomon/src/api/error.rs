//! How an operation says that it failed: one shape for daemon, wire and command line.
//!
//! Every error enum of the project has a `kind()`; here it gets its HTTP status and its exit code, in one table.

use std::{error::Error, fmt};

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use gnomon_terms::ErrorKind;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a caller can do about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The request itself has no meaning: write it differently.
    Usage,
    /// What it names does not exist.
    NotFound,
    /// It must not be done as asked. Asking again will not help.
    Refused,
    /// Something that is needed does not answer or is full. Asking again later may help.
    Unavailable,
    /// Bytes that should be trustworthy are not. Nothing was changed because of them.
    Corrupt,
}

impl Kind {
    fn row(self) -> (StatusCode, u8) {
        match self {
            Kind::Usage => (StatusCode::BAD_REQUEST, 2),
            Kind::NotFound => (StatusCode::NOT_FOUND, 1),
            Kind::Refused => (StatusCode::CONFLICT, ErrorKind::Refused.exit_code()),
            Kind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, ErrorKind::Unavailable.exit_code()),
            Kind::Corrupt => (StatusCode::INTERNAL_SERVER_ERROR, ErrorKind::Corrupt.exit_code()),
        }
    }

    /// The exit code of a command that ends this way.
    pub fn exit_code(self) -> u8 {
        self.row().1
    }
}

impl From<ErrorKind> for Kind {
    fn from(kind: ErrorKind) -> Kind {
        match kind {
            ErrorKind::Refused => Kind::Refused,
            ErrorKind::Unavailable => Kind::Unavailable,
            ErrorKind::Corrupt => Kind::Corrupt,
        }
    }
}

/// Why an operation failed, as it crosses the API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApiError {
    /// What can be done about it.
    pub kind: Kind,
    /// What happened and where, with its causes.
    pub message: String,
    /// What to do next, when there is more to say than the message does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl ApiError {
    /// An error of `kind`.
    pub fn new(kind: Kind, message: impl Into<String>) -> ApiError {
        ApiError { kind, message: message.into(), next: None }
    }

    /// The request has no meaning.
    pub fn usage(message: impl Into<String>) -> ApiError {
        ApiError::new(Kind::Usage, message)
    }

    /// There is no such thing.
    pub fn not_found(what: &str, name: &str) -> ApiError {
        ApiError::new(Kind::NotFound, format!("there is no {what} named '{name}'"))
            .then(format!("`gnomon {what} ls` lists what there is"))
    }

    /// It must not be done.
    pub fn refused(message: impl Into<String>) -> ApiError {
        ApiError::new(Kind::Refused, message)
    }

    /// Something needed does not answer.
    pub fn unavailable(message: impl Into<String>) -> ApiError {
        ApiError::new(Kind::Unavailable, message)
    }

    /// Something that our own code should have made impossible, such as a value that JSON cannot hold.
    pub fn internal(error: impl fmt::Display) -> ApiError {
        ApiError::new(Kind::Corrupt, format!("an error of gnomon itself: {error}"))
            .then("please report it with the daemon's log")
    }

    /// A library's error with all its causes.
    pub fn of(kind: ErrorKind, error: &dyn Error) -> ApiError {
        ApiError::new(kind.into(), chain(error))
    }

    /// Adds what to do next.
    pub fn then(mut self, next: impl Into<String>) -> ApiError {
        self.next = Some(next.into());
        self
    }
}

/// An error's message followed by its causes, each once: some messages already repeat their cause.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.next {
            Some(next) => write!(f, "{} ({next})", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl Error for ApiError {}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.kind.row().0, Json(self)).into_response()
    }
}

/// Lets `?` turn a library's error into an [`ApiError`]: each has `kind()`.
macro_rules! translate {
    ($($error:ty),* $(,)?) => {
        $(impl From<$error> for $crate::api::ApiError {
            fn from(error: $error) -> $crate::api::ApiError {
                $crate::api::ApiError::of(error.kind(), &error)
            }
        })*
    };
}

translate!(
    gnomon_cycle::CycleError,
    gnomon_cycle::staging::StagingError,
    gnomon_forecast::sequence::ModelError,
    gnomon_forecast::trace::TraceError,
    gnomon_link::LinkError,
    gnomon_proto::bitmap::BitmapError,
    gnomon_proto::handover::OutOfTurn,
    gnomon_memory::BadGroupName,
    gnomon_memory::StagingError,
    gnomon_qemu::GuestAgentError,
    gnomon_qemu::MemoryDeviceError,
    gnomon_qemu::MigrateError,
    gnomon_qemu::ProcessError,
    gnomon_qemu::QmpError,
    gnomon_machine::primary::ReplicateError,
    gnomon_machine::shadow::FailoverError,
    gnomon_machine::shadow::ShadowError,
    gnomon_machine::snapshot::SnapshotError,
    gnomon_machine::takeover::TakeoverError,
    gnomon_qemu::RamError,
    gnomon_qemu::SpecError,
    gnomon_qemu::StateError,
    gnomon_qemu::StreamError,
    gnomon_qemu::TrackError,
    gnomon_store::StoreError,
    gnomon_store::guarding::GuardingError,
    gnomon_volume::disk::DiskError,
    gnomon_link::pki::PkiError,
    gnomon_volume::disk::OpenError,
    gnomon_volume::front::vhost_user::VhostUserError,
    gnomon_volume::import::ImageError,
    gnomon_volume::serve::ServeError,
    gnomon_volume::standby::SenderError,
    gnomon_volume::standby::StandbyError,
    gnomon_volume::verify::VerifyError,
    gnomon_volume::volume::VolumeError,
    crate::daemon::cards::UplinkError,
);

impl From<std::io::Error> for ApiError {
    fn from(error: std::io::Error) -> ApiError {
        ApiError::unavailable(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_status_and_exit_code() {
        let table = [
            (Kind::Usage, 400, 2),
            (Kind::NotFound, 404, 1),
            (Kind::Refused, 409, 3),
            (Kind::Unavailable, 503, 1),
            (Kind::Corrupt, 500, 1),
        ];
        for (kind, status, code) in table {
            assert_eq!((kind.row().0.as_u16(), kind.exit_code()), (status, code), "{kind:?}");
        }
    }

    #[test]
    fn causes_are_told_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer: inner")]
        struct Told(#[source] std::io::Error);
        assert_eq!(chain(&Told(std::io::Error::other("inner"))), "outer: inner");
        assert_eq!(chain(&Told(std::io::Error::other("deeper"))), "outer: inner: deeper");
    }
}
