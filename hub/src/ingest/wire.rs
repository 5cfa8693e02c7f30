//! Messages on QUIC streams: whole ones in, whole ones out, and nobody waits for ever.

use std::time::Duration;

use quinn::{ReadError, RecvStream, SendStream, WriteError};
use zunft_protocol::message::{DecodeError, HEADER_BYTES, Header, Message};

/// Longest time without a single byte of progress on a stream that is in use.
///
/// A bulk upload may starve behind labelled ones for a while; a robot that is gone ends sooner, by the idle timeout.
pub(crate) const STALL_MAX: Duration = Duration::from_secs(120);

/// Most bytes taken from a stream at once.
const READ_BYTES: usize = 64 * 1024;

/// Why a message did not arrive or leave.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    /// The stream ended before or inside a message.
    #[error("the robot ended the stream inside a message")]
    Ended,
    /// The connection or stream broke.
    #[error("could not read from the robot")]
    Read(#[from] ReadError),
    /// The connection or stream broke.
    #[error("could not write to the robot")]
    Write(#[from] WriteError),
    /// Bytes that are no message.
    #[error("the robot sent what is no message")]
    Decode(#[from] DecodeError),
    /// A message that does not belong here.
    #[error("the robot sent a message that does not belong on this stream")]
    Unexpected,
    /// No progress.
    #[error("nothing moved on the stream for {} s", STALL_MAX.as_secs())]
    Stalled,
}

impl WireError {
    /// Whether the robot broke the protocol, rather than a link or a process.
    pub(crate) fn is_violation(&self) -> bool {
        matches!(self, Self::Decode(_) | Self::Unexpected)
    }
}

/// Reads one message; `None` where the stream ended between two.
pub(crate) async fn read_message(stream: &mut RecvStream) -> Result<Option<Message>, WireError> {
    match read_header(stream).await? {
        Some(header) => read_body(stream, header).await.map(Some),
        None => Ok(None),
    }
}

/// Reads a message's header, so that its size is known before memory is taken for it.
pub(crate) async fn read_header(stream: &mut RecvStream) -> Result<Option<Header>, WireError> {
    let mut header = [0; HEADER_BYTES];
    let Some(first) = progress(stream.read(&mut header)).await?? else {
        return Ok(None);
    };
    fill(stream, &mut header[first..]).await?;
    Ok(Some(Header::decode(header)?))
}

/// Reads what belongs to a header.
pub(crate) async fn read_body(stream: &mut RecvStream, header: Header) -> Result<Message, WireError> {
    // The header's bounds were checked; memory follows the bytes that come, not the robot's promise.
    let mut body = Vec::with_capacity(header.body_bytes.min(READ_BYTES));
    while body.len() < header.body_bytes {
        let begin = body.len();
        body.resize(header.body_bytes.min(begin + READ_BYTES), 0);
        fill(stream, &mut body[begin..]).await?;
    }
    Ok(header.decode_body(body)?)
}

/// Reads what belongs to a header and keeps nothing of it.
pub(crate) async fn skip_body(stream: &mut RecvStream, header: &Header) -> Result<(), WireError> {
    let mut left = header.body_bytes;
    while left > 0 {
        let chunk = progress(stream.read_chunk(left.min(READ_BYTES), true)).await??.ok_or(WireError::Ended)?;
        left -= chunk.bytes.len();
    }
    Ok(())
}

/// Fills the buffer.
pub(crate) async fn fill(stream: &mut RecvStream, mut buffer: &mut [u8]) -> Result<(), WireError> {
    while !buffer.is_empty() {
        let read = progress(stream.read(buffer)).await??.ok_or(WireError::Ended)?;
        buffer = &mut buffer[read..];
    }
    Ok(())
}

/// Writes bytes; what is written is not received, let alone stored.
pub(crate) async fn write(stream: &mut SendStream, mut bytes: &[u8]) -> Result<(), WireError> {
    while !bytes.is_empty() {
        let written = progress(stream.write(bytes)).await??;
        bytes = &bytes[written..];
    }
    Ok(())
}

/// Ends the sending half in good order.
pub(crate) fn finish(stream: &mut SendStream) {
    if stream.finish().is_err() {
        tracing::debug!("the stream was closed before it was finished");
    }
}

async fn progress<T>(step: impl Future<Output = T>) -> Result<T, WireError> {
    tokio::time::timeout(STALL_MAX, step).await.map_err(|_| WireError::Stalled)
}
