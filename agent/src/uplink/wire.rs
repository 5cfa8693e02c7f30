//! Messages over QUIC streams: waiting for their bytes, with a bound on standing still.

use std::time::Duration;

use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use zunft_protocol::message::{DecodeError, HEADER_BYTES, Header, Message};

use super::tls::SEND_WINDOW_BYTES;

/// A stream on which nothing moves for so long is given up. Time is counted anew with every message or piece.
pub(super) const STANDSTILL_MAX: Duration = Duration::from_secs(60);

/// Why a stream is of no more use.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error("the stream could not be read: {0}")]
    Read(String),
    #[error("the stream could not be written: {0}")]
    Write(#[from] quinn::WriteError),
    #[error("the hub ended the stream")]
    Ended,
    #[error("nothing moved for {} s", STANDSTILL_MAX.as_secs())]
    Standstill,
    #[error("the hub does not keep to the protocol")]
    Decode(#[from] DecodeError),
    #[error("the hub said {0} where it makes no sense")]
    Unexpected(&'static str),
    #[error("the connection is lost: {0}")]
    Connection(#[from] quinn::ConnectionError),
}

/// Waits for a step of an upload as long as the connection sends anything at all: on a slow link, behind what is more
/// urgent, a stream's turn may be minutes away. `step` must not have a bound of its own.
pub(super) async fn patiently<T>(
    connection: &quinn::Connection,
    step: impl Future<Output = Result<T, WireError>>,
) -> Result<T, WireError> {
    let mut step = std::pin::pin!(step);
    // Asked for only where a step takes long: there is one for every few packets.
    let mut sent = None;
    loop {
        if let Ok(done) = tokio::time::timeout(STANDSTILL_MAX, &mut step).await {
            return done;
        }
        let now = connection.stats().frame_tx.stream;
        if sent.replace(now) == Some(now) {
            return Err(WireError::Standstill);
        }
    }
}

/// The next message of a stream; waits for its first byte without a bound.
pub(super) async fn read_message(stream: &mut RecvStream) -> Result<Message, WireError> {
    let mut header = [0; HEADER_BYTES];
    read_exact(stream, &mut header).await?;
    let header = Header::decode(header)?;
    let mut body = vec![0; header.body_bytes];
    match tokio::time::timeout(STANDSTILL_MAX, read_exact(stream, &mut body)).await {
        Ok(read) => read?,
        Err(_) => return Err(WireError::Standstill),
    }
    Ok(header.decode_body(body)?)
}

/// Fills `buffer`.
pub(super) async fn read_exact(stream: &mut RecvStream, buffer: &mut [u8]) -> Result<(), WireError> {
    stream.read_exact(buffer).await.map_err(|error| match error {
        quinn::ReadExactError::FinishedEarly(_) => WireError::Ended,
        quinn::ReadExactError::ReadError(error) => WireError::Read(error.to_string()),
    })
}

/// Writes a message whole.
pub(super) async fn write_message(stream: &mut SendStream, message: &Message) -> Result<(), WireError> {
    write(stream, &message.encode()).await
}

/// Writes bytes.
pub(super) async fn write(stream: &mut SendStream, bytes: &[u8]) -> Result<(), WireError> {
    Ok(stream.write_all(bytes).await?)
}

/// Writes bytes that need not be copied for it.
pub(super) async fn write_bytes(stream: &mut SendStream, bytes: Bytes) -> Result<(), WireError> {
    Ok(stream.write_chunk(bytes).await?)
}

/// Writes a message that must not wait behind bulk: the window that all streams share is opened a little for it.
pub(super) async fn write_urgently(
    connection: &quinn::Connection,
    stream: &mut SendStream,
    message: &Message,
) -> Result<(), WireError> {
    let bytes = message.encode();
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        connection.set_send_window(SEND_WINDOW_BYTES + bytes.len() as u64);
        let written = tokio::time::timeout(STANDSTILL_MAX, stream.write(rest)).await;
        connection.set_send_window(SEND_WINDOW_BYTES);
        rest = &rest[written.map_err(|_| WireError::Standstill)??..];
    }
    Ok(())
}
