//! The API: HTTP and JSON over a unix socket. The command line is one client of it.

pub mod client;
mod error;
mod routes;
pub mod types;

pub use error::{ApiError, Kind, chain};
pub use routes::{bind, serve};
