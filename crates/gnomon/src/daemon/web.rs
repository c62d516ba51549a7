//! One request to a web server that is somebody else's. Whoever asks bounds it in time: the connection ends with the answer,
//! or with whoever no longer waits for it.

use std::io;

use http_body_util::BodyExt;
use hyper::{
    Response,
    body::{Body, Bytes, Incoming},
    client::conn::http1,
    http::request::Builder,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// An answer that has begun; dropped, its connection ends.
pub struct Answer {
    head: Response<Incoming>,
    _connection: Aborted,
}

/// A task that ends with its owner.
struct Aborted(tokio::task::AbortHandle);

impl Drop for Aborted {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Asks `host` (a name or an address, and a port), and awaits that it begins to answer.
pub async fn ask<B>(host: &str, request: Builder, body: B) -> io::Result<Answer>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
{
    let request = request.header("host", host).body(body).map_err(io::Error::other)?;
    let stream = TcpStream::connect(host).await?;
    let (mut http, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // A server that hangs keeps no connection of ours.
    let connection = Aborted(tokio::spawn(connection).abort_handle());
    let head = http.send_request(request).await.map_err(io::Error::other)?;
    Ok(Answer { head, _connection: connection })
}

impl Answer {
    /// Whether it did as asked.
    pub fn status(&self) -> hyper::StatusCode {
        self.head.status()
    }

    /// The first `most` bytes of what it says.
    pub async fn text(mut self, most: usize) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        while let Some(frame) = self.head.frame().await {
            if let Ok(data) = frame.map_err(io::Error::other)?.into_data() {
                text.extend_from_slice(&data[..data.len().min(most - text.len())]);
            }
            if text.len() == most {
                break;
            }
        }
        Ok(text)
    }
}
