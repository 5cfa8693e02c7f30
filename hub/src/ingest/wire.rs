//! Messages on QUIC streams: whole ones in, whole ones out, and nobody waits for ever.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quinn::{ReadError, RecvStream, SendStream, WriteError};
use zunft_protocol::limits::MESSAGE_BYTES_MAX;
use zunft_protocol::message::{ChunkRest, DecodeError, HEADER_BYTES, Header, Message, MessageType};

/// What must move within `limits.stall_secs` on a stream that is in use, unless less is left: a peer that sends a byte
/// now and then stands still.
const PROGRESS_BYTES_MIN: usize = 4 * 1024;

/// Most bytes that a chunk's message has before the chunk's own: its digest and from where on it is sent.
const CHUNK_BEGIN_BYTES_MAX: usize = 36;

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
    /// A message larger than any that belongs here.
    #[error("the robot announced a message of {bytes} bytes where at most {bytes_max} belong")]
    TooLarge {
        /// Bytes of its body.
        bytes: usize,
        /// The bound.
        bytes_max: usize,
    },
    /// No progress.
    #[error("nothing worth mentioning moved on the stream in time (config key limits.stall_secs)")]
    Stalled,
}

impl WireError {
    /// Whether the robot broke the protocol, rather than a link or a process.
    pub(crate) fn is_violation(&self) -> bool {
        matches!(self, Self::Decode(_) | Self::Unexpected | Self::TooLarge { .. })
    }
}

/// What moves on all of a robot's uploads. A robot sends one after the other: a stream may stand still for as long as
/// others move.
#[derive(Debug)]
pub(crate) struct Progress {
    stall: Duration,
    bytes: AtomicU64,
}

impl Progress {
    pub(crate) fn new(stall: Duration) -> Self {
        Self { stall, bytes: AtomicU64::new(0) }
    }

    /// In which time something must move.
    pub(crate) fn stall(&self) -> Duration {
        self.stall
    }

    /// Waits for the first bytes of a message, whose turn may come after others'.
    async fn first(&self, stream: &mut RecvStream, header: &mut [u8]) -> Result<Option<usize>, WireError> {
        let mut before = self.bytes.load(Ordering::Relaxed);
        loop {
            // A read that is given up takes nothing.
            if let Ok(read) = tokio::time::timeout(self.stall, stream.read(header)).await {
                return Ok(read?);
            }
            let now = self.bytes.load(Ordering::Relaxed);
            if now - before < PROGRESS_BYTES_MIN as u64 {
                return Err(WireError::Stalled);
            }
            before = now;
        }
    }
}

/// A message as far as it has come: what is left where a stream breaks.
#[derive(Debug, Default)]
pub(crate) struct Arriving {
    header: Option<Header>,
    body: Vec<u8>,
}

impl Arriving {
    /// Reads a chunk of at most so many bytes, or the end of one; `None` where the stream ended between two.
    ///
    /// Memory was reserved for such chunks alone: anything else is refused at its header.
    pub(crate) async fn read_chunk(
        &mut self,
        stream: &mut RecvStream,
        progress: &Progress,
        chunk_bytes_max: usize,
    ) -> Result<Option<Message>, WireError> {
        *self = Self::default();
        let mut header = [0; HEADER_BYTES];
        let Some(read) = progress.first(stream, &mut header).await? else { return Ok(None) };
        fill(stream, &mut header[read..], progress.stall).await?;
        let header = Header::decode(header)?;
        if !matches!(header.message_type, MessageType::Chunk | MessageType::ChunkRest) {
            return Err(WireError::Unexpected);
        }
        at_most(&header, CHUNK_BEGIN_BYTES_MAX + chunk_bytes_max)?;
        self.read_body(stream, header, progress.stall, &progress.bytes).await.map(Some)
    }

    async fn read_body(
        &mut self,
        stream: &mut RecvStream,
        header: Header,
        stall: Duration,
        moved: &AtomicU64,
    ) -> Result<Message, WireError> {
        self.header = Some(header);
        // The header's bounds were checked; the memory is touched as the bytes come, not at the robot's promise.
        self.body.reserve_exact(header.body_bytes);
        let mut before = 0;
        while self.body.len() < header.body_bytes {
            let rest = async {
                while self.body.len() < header.body_bytes {
                    let missing = header.body_bytes - self.body.len();
                    let chunk = stream.read_chunk(missing, true).await?.ok_or(WireError::Ended)?;
                    moved.fetch_add(chunk.bytes.len() as u64, Ordering::Relaxed);
                    self.body.extend_from_slice(&chunk.bytes);
                }
                Ok::<_, WireError>(())
            };
            // One timer a message, begun anew as long as enough has come: one for every few packets would cost more
            // than they do. What was read is in the body, whenever this is given up.
            match tokio::time::timeout(stall, rest).await {
                Ok(read) => read?,
                Err(_) if self.body.len() - before >= PROGRESS_BYTES_MIN => before = self.body.len(),
                Err(_) => return Err(WireError::Stalled),
            }
        }
        Ok(header.decode_body(std::mem::take(&mut self.body))?)
    }

    /// The chunk whose message broke off.
    pub(crate) fn chunk(&self) -> Option<ChunkRest> {
        self.header.as_ref()?.broken_off_chunk(&self.body)
    }
}

/// Reads one message from the control stream, which may be quiet between two: the idle timeout ends silent connections.
pub(crate) async fn next_message(stream: &mut RecvStream, stall: Duration) -> Result<Option<Message>, WireError> {
    let mut header = [0; HEADER_BYTES];
    let Some(read) = stream.read(&mut header).await? else { return Ok(None) };
    fill(stream, &mut header[read..], stall).await?;
    let header = Header::decode(header)?;
    at_most(&header, MESSAGE_BYTES_MAX)?;
    read_body(stream, header, stall).await.map(Some)
}

/// Refuses a message by its size, before memory is taken for it.
fn at_most(header: &Header, bytes_max: usize) -> Result<(), WireError> {
    let bytes = header.body_bytes;
    if bytes > bytes_max { Err(WireError::TooLarge { bytes, bytes_max }) } else { Ok(()) }
}

/// Reads a message's header, so that its size is known before memory is taken for it.
pub(crate) async fn read_header(stream: &mut RecvStream, stall: Duration) -> Result<Option<Header>, WireError> {
    let mut header = [0; HEADER_BYTES];
    let Some(read) = progress(stall, stream.read(&mut header)).await?? else { return Ok(None) };
    fill(stream, &mut header[read..], stall).await?;
    Ok(Some(Header::decode(header)?))
}

/// Reads what belongs to a header.
pub(crate) async fn read_body(stream: &mut RecvStream, header: Header, stall: Duration) -> Result<Message, WireError> {
    Arriving::default().read_body(stream, header, stall, &AtomicU64::new(0)).await
}

/// Reads what belongs to a header and keeps nothing of it.
pub(crate) async fn skip_body(stream: &mut RecvStream, header: &Header, stall: Duration) -> Result<(), WireError> {
    let mut left = header.body_bytes;
    while left > 0 {
        let enough = left.saturating_sub(PROGRESS_BYTES_MIN);
        let moving = async {
            while left > enough {
                left -= stream.read_chunk(left, true).await?.ok_or(WireError::Ended)?.bytes.len();
            }
            Ok::<_, WireError>(())
        };
        progress(stall, moving).await??;
    }
    Ok(())
}

/// Fills the buffer.
pub(crate) async fn fill(stream: &mut RecvStream, buffer: &mut [u8], stall: Duration) -> Result<(), WireError> {
    let mut filled = 0;
    while filled < buffer.len() {
        let enough = buffer.len().min(filled + PROGRESS_BYTES_MIN);
        let moving = async {
            while filled < enough {
                filled += stream.read(&mut buffer[filled..]).await?.ok_or(WireError::Ended)?;
            }
            Ok::<_, WireError>(())
        };
        progress(stall, moving).await??;
    }
    Ok(())
}

/// Writes bytes; what is written is not received, let alone stored.
pub(crate) async fn write(stream: &mut SendStream, bytes: &[u8], stall: Duration) -> Result<(), WireError> {
    let mut written = 0;
    while written < bytes.len() {
        let enough = bytes.len().min(written + PROGRESS_BYTES_MIN);
        let moving = async {
            while written < enough {
                written += stream.write(&bytes[written..]).await?;
            }
            Ok::<_, WireError>(())
        };
        progress(stall, moving).await??;
    }
    Ok(())
}

/// Ends the sending half in good order.
pub(crate) fn finish(stream: &mut SendStream) {
    if stream.finish().is_err() {
        tracing::debug!("the stream was closed before it was finished");
    }
}

async fn progress<T>(stall: Duration, step: impl Future<Output = T>) -> Result<T, WireError> {
    tokio::time::timeout(stall, step).await.map_err(|_| WireError::Stalled)
}
