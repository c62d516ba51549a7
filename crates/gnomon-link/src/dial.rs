//! Connecting to a node: one connection per class, joined by a session id.

use std::sync::Arc;

use gnomon_proto::{
    Class,
    frame::{Hello, Message},
};
use rustls_pki_types::ServerName;
use tokio::{io::AsyncWriteExt, net::TcpStream};
use tokio_rustls::{TlsConnector, TlsStream};

use crate::{
    Identity, LinkError, Options, Session,
    pump::{ReadError, read_message},
    session::Peer,
    tls,
};

/// Bytes that rustls may hold encrypted before it waits for the socket: four records' worth per system call.
const TLS_BUFFER: usize = 256 << 10;

/// Opens a session with the node at `addr` ("host:port"); if `expected_node` is given, only with that one.
///
/// # Errors
/// See [`LinkError`]: nobody there, not TLS, another authority, another node, an expired certificate.
pub async fn connect(addr: &str, expected_node: Option<&str>, identity: &Identity) -> Result<Session, LinkError> {
    connect_with(addr, expected_node, identity, Options::default()).await
}

/// As [`connect`], with options.
pub async fn connect_with(
    addr: &str,
    expected_node: Option<&str>,
    identity: &Identity,
    options: Options,
) -> Result<Session, LinkError> {
    let after = options.handshake_within;
    match tokio::time::timeout(after, open(addr, expected_node, identity, options)).await {
        Ok(session) => session,
        Err(_) => Err(LinkError::Timeout { addr: addr.to_string(), after }),
    }
}

async fn open(
    addr: &str,
    expected: Option<&str>,
    identity: &Identity,
    options: Options,
) -> Result<Session, LinkError> {
    let session =
        tls::random(identity.provider()).map_err(|source| LinkError::Tls { addr: addr.to_string(), source })?;
    let (first, hello) = open_one(addr, expected, identity, session, Class::ALL[0]).await?;
    let peer = Peer { name: hello.node, boot: hello.boot, session };
    let mut connections = vec![first];
    for class in &Class::ALL[1..] {
        let (connection, hello) = open_one(addr, Some(&peer.name), identity, session, *class).await?;
        if hello.boot != peer.boot {
            return Err(LinkError::Hello { addr: addr.to_string(), what: "the peer restarted meanwhile" });
        }
        connections.push(connection);
    }
    let connections = connections.try_into().expect("one connection was opened per class");
    Ok(Session::start(peer, options, connections))
}

/// Opens the connection of one class and exchanges hellos.
async fn open_one(
    addr: &str,
    expected: Option<&str>,
    identity: &Identity,
    session: u128,
    class: Class,
) -> Result<(TlsStream<TcpStream>, Hello), LinkError> {
    let io = |what| move |source| LinkError::Io { what, addr: addr.to_string(), source };
    let tcp = TcpStream::connect(addr).await.map_err(io("connecting to"))?;
    tcp.set_nodelay(true).map_err(io("setting up the connection to"))?;
    let config =
        tls::client_config(identity, expected).map_err(|source| LinkError::Tls { addr: addr.to_string(), source })?;
    // The name is checked by our verifier against the certificate's own; this one is never sent nor compared.
    let unused = ServerName::try_from("peer").expect("a constant name is valid");
    let connector = TlsConnector::from(Arc::new(config));
    let stream = connector
        .connect_with(unused, tcp, |tls| tls.set_buffer_limit(Some(TLS_BUFFER)))
        .await
        .map_err(|error| tls::explain("TLS with", addr, error))?;
    let mut stream = TlsStream::from(stream);
    say_hello(&mut stream, addr, identity, session, class).await?;
    let hello = hear_hello(&mut stream, addr).await?;
    if hello.session != session || hello.class != class {
        return Err(LinkError::Hello { addr: addr.to_string(), what: "the hello is for another session" });
    }
    Ok((stream, hello))
}

/// Sends this node's hello.
pub(crate) async fn say_hello(
    stream: &mut TlsStream<TcpStream>,
    addr: &str,
    identity: &Identity,
    session: u128,
    class: Class,
) -> Result<(), LinkError> {
    let hello = Hello { node: identity.name().to_string(), boot: identity.boot(), class, session };
    let mut frame = Vec::new();
    Message::Hello(hello).encode(&mut frame).map_err(|source| LinkError::Frame { addr: addr.to_string(), source })?;
    let written = async {
        stream.write_all(&frame).await?;
        stream.flush().await
    };
    written.await.map_err(|error| tls::explain("greeting", addr, error))
}

/// Reads the peer's hello and holds it against its certificate.
pub(crate) async fn hear_hello(stream: &mut TlsStream<TcpStream>, addr: &str) -> Result<Hello, LinkError> {
    let addr_owned = || addr.to_string();
    let message = match read_message(stream).await {
        Ok((message, _)) => message,
        Err(ReadError::Io(error)) => return Err(tls::explain("waiting for the hello of", addr, error)),
        Err(ReadError::Frame(source)) => return Err(LinkError::Frame { addr: addr_owned(), source }),
    };
    let hello = match message {
        Message::Hello(hello) => hello,
        Message::Goodbye { reason } => return Err(LinkError::Declined { addr: addr_owned(), reason }),
        _ => return Err(LinkError::Hello { addr: addr_owned(), what: "the first frame is not a hello" }),
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    match certificate.and_then(tls::node_name) {
        Some(name) if name == hello.node => Ok(hello),
        Some(_) => {
            Err(LinkError::Hello { addr: addr_owned(), what: "the hello names another node than the certificate" })
        }
        None => Err(LinkError::Hello { addr: addr_owned(), what: "the certificate names no node" }),
    }
}
