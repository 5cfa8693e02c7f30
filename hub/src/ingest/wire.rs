//! Messages on QUIC streams: whole ones in, whole ones out, and nobody waits for ever.

use std::time::Duration;

use quinn::{ReadError, RecvStream, SendStream, WriteError};
use zunft_protocol::message::{ChunkRest, DecodeError, HEADER_BYTES, Header, Message};

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

/// A message as far as it has come: what is left where a stream breaks.
#[derive(Debug, Default)]
pub(crate) struct Arriving {
    header: Option<Header>,
    body: Vec<u8>,
}

impl Arriving {
    /// Reads one message; `None` where the stream ended between two.
    pub(crate) async fn read(&mut self, stream: &mut RecvStream) -> Result<Option<Message>, WireError> {
        *self = Self::default();
        let mut header = [0; HEADER_BYTES];
        let Some(first) = progress(stream.read(&mut header)).await?? else {
            return Ok(None);
        };
        fill(stream, &mut header[first..]).await?;
        let header = self.header.insert(Header::decode(header)?);
        // The header's bounds were checked; memory follows the bytes that come, not the robot's promise.
        self.body.reserve_exact(header.body_bytes.min(READ_BYTES));
        while self.body.len() < header.body_bytes {
            let missing = header.body_bytes - self.body.len();
            let chunk = progress(stream.read_chunk(missing.min(READ_BYTES), true)).await??.ok_or(WireError::Ended)?;
            self.body.extend_from_slice(&chunk.bytes);
        }
        Ok(Some(header.decode_body(std::mem::take(&mut self.body))?))
    }

    /// The chunk whose message broke off.
    pub(crate) fn chunk(&self) -> Option<ChunkRest> {
        self.header.as_ref()?.broken_off_chunk(&self.body)
    }
}

/// Reads one message; `None` where the stream ended between two.
pub(crate) async fn read_message(stream: &mut RecvStream) -> Result<Option<Message>, WireError> {
    Arriving::default().read(stream).await
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
