//! The command line's side of the API: HTTP over the daemon's unix socket.

use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use super::{ApiError, Kind, types::JobView};

/// Speaks to one daemon. Each request has its own connection: they are cheap on a unix socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the daemon that listens on `socket`. Nothing is opened yet.
    pub fn new(socket: PathBuf) -> Client {
        Client { socket }
    }

    /// Asks for a view.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        parse(&self.send(Method::GET, path, &()).await?.collect().await?)
    }

    /// Asks for something to be done.
    pub async fn post<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, ApiError> {
        parse(&self.send(Method::POST, path, body).await?.collect().await?)
    }

    /// Asks for something to be removed.
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        parse(&self.send(Method::DELETE, path, &()).await?.collect().await?)
    }

    /// Follows a job until it is over; `on` sees each state it was in.
    pub async fn follow(&self, id: &str, mut on: impl FnMut(&JobView)) -> Result<JobView, ApiError> {
        let mut lines = self.lines(&format!("/v1/jobs/{id}?watch=true")).await?;
        let mut last = None;
        while let Some(line) = lines.next().await? {
            let view: JobView = parse(line.as_bytes())?;
            on(&view);
            last = Some(view);
        }
        match last {
            Some(view) if view.state.is_over() => Ok(view),
            _ => Err(ApiError::unavailable(format!("the daemon closed the connection while job {id} was running"))
                .then("see whether it runs; a move goes on or is undone when it is back")),
        }
    }

    /// Reads an answer that grows, line by line.
    pub async fn lines(&self, path: &str) -> Result<Lines, ApiError> {
        let body = self.send(Method::GET, path, &()).await?;
        Ok(Lines { body, waiting: Vec::new(), read: 0, ended: false })
    }

    async fn send<B: Serialize>(&self, method: Method, path: &str, body: &B) -> Result<Body, ApiError> {
        let mut http = self.connect().await?;
        let body = serde_json::to_vec(body).map_err(|error| ApiError::usage(error.to_string()))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "gnomon")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| ApiError::usage(error.to_string()))?;
        let answer = http.send_request(request).await.map_err(|error| self.broken(&error))?;
        failed_or_body(answer).await
    }

    async fn connect(&self) -> Result<http1::SendRequest<Full<Bytes>>, ApiError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| no_daemon(&self.socket, &error))?;
        let (http, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(&error))?;
        tokio::spawn(connection);
        Ok(http)
    }

    fn broken(&self, error: &hyper::Error) -> ApiError {
        ApiError::unavailable(format!("the daemon at {} did not answer: {error}", self.socket.display()))
    }
}

fn no_daemon(socket: &Path, error: &std::io::Error) -> ApiError {
    ApiError::unavailable(format!("no daemon answers at {}: {error}", socket.display()))
        .then("start it with `gnomon serve`, or name its socket with --socket or GNOMON_SOCKET")
}

async fn failed_or_body(answer: Response<Incoming>) -> Result<Body, ApiError> {
    let status = answer.status();
    let body = Body(answer.into_body());
    match status.is_success() {
        true => Ok(body),
        false => Err(said(status, &body.collect().await?)),
    }
}

/// What the daemon said was wrong; an answer that is not ours (a proxy, axum's own refusals) is shown as it is.
fn said(status: StatusCode, body: &[u8]) -> ApiError {
    serde_json::from_slice(body).unwrap_or_else(|_| {
        let kind = if status.is_client_error() { Kind::Usage } else { Kind::Unavailable };
        ApiError::new(kind, format!("{status}: {}", String::from_utf8_lossy(body)))
    })
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        ApiError::new(Kind::Corrupt, format!("the daemon's answer is not understood: {error}"))
            .then("daemon and command line may be of different versions: `gnomon node ls --json` tells the daemon's")
    })
}

struct Body(Incoming);

impl Body {
    async fn collect(self) -> Result<Vec<u8>, ApiError> {
        let whole = self.0.collect().await.map_err(|error| ApiError::unavailable(error.to_string()))?;
        Ok(whole.to_bytes().to_vec())
    }
}

/// The lines of an answer that grows.
pub struct Lines {
    body: Body,
    waiting: Vec<u8>,
    read: usize,
    ended: bool,
}

impl Lines {
    /// The next line without its end; `None` when the daemon has closed the answer.
    pub async fn next(&mut self) -> Result<Option<String>, ApiError> {
        loop {
            if let Some(line) = self.take_line() {
                return Ok(Some(line));
            }
            if self.ended {
                return Ok(None);
            }
            match self.body.0.frame().await {
                Some(Ok(frame)) => self.waiting.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data)),
                Some(Err(error)) => return Err(ApiError::unavailable(format!("the daemon broke off: {error}"))),
                None => self.ended = true,
            }
        }
    }

    fn take_line(&mut self) -> Option<String> {
        let found = self.waiting[self.read..].iter().position(|byte| *byte == b'\n');
        let Some(len) = found else {
            self.waiting.drain(..self.read);
            self.read = 0;
            return None;
        };
        let line = String::from_utf8_lossy(&self.waiting[self.read..self.read + len]).into_owned();
        self.read += len + 1;
        Some(line)
    }
}
