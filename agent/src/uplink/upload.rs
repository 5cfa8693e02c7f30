//! One episode's stream: its offer, the chunks that the hub wants, and the hub's answer.
//!
//! It decides nothing: the session says what to send, and whether the episode may be freed.

use std::cmp::Reverse;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use zunft_protocol::message::{CloseCode, Message, Want, chunk_head};
use zunft_protocol::session::UploadReply;

use super::SharedStatus;
use super::turns::{Rank, Turn, Turns};
use super::wire::{WireError, patiently, read_message, write_bytes, write_message};
use crate::spool::{ReadError, Spool, StoredEpisode};

/// Most bytes written at a time, so that the numbers of a slow link move.
const PIECE_BYTES: usize = 64 * 1024;

/// Why an upload broke.
#[derive(Debug, thiserror::Error)]
pub(super) enum UploadError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("the episode could not be read from the spool")]
    Spool(#[from] ReadError),
    #[error("the thread that reads the spool failed")]
    Task,
    #[error("the upload was given up")]
    GivenUp,
}

/// Chunks in memory: those that are sent next, and those that are read meanwhile.
const CHUNKS_READ_MAX: usize = 4;

/// Whose turn it is, among all uploads of a connection.
#[derive(Debug, Clone)]
pub(super) struct UploadTurns {
    read: Turns,
    send: Turns,
}

impl UploadTurns {
    pub(super) fn new() -> Self {
        Self { read: Turns::new(CHUNKS_READ_MAX), send: Turns::new(1) }
    }
}

/// What an upload works with.
pub(super) struct Upload {
    pub(super) connection: quinn::Connection,
    pub(super) spool: Spool,
    pub(super) state: Arc<SharedStatus>,
    pub(super) episode: StoredEpisode,
    pub(super) priority: i32,
    /// Whether chunks are on offer, and not the manifest alone.
    pub(super) whole: bool,
    pub(super) turns: UploadTurns,
    /// What the session wants sent; closed when the upload is given up.
    pub(super) wanted: mpsc::Receiver<Want>,
    /// The hub's answers.
    pub(super) replies: mpsc::Sender<UploadReply>,
}

impl Upload {
    /// Runs until the hub has said its last word on this stream, or the session gives the upload up.
    pub(super) async fn run(mut self) -> Result<(), UploadError> {
        let (mut send, mut receive) = tokio::select! {
            streams = self.connection.open_bi() => streams.map_err(WireError::from)?,
            // Before the hub's first answer, the session has nothing to say but that it gives the upload up.
            _ = self.wanted.recv() => return Err(UploadError::GivenUp),
        };
        // The priority of a stream that is still open never fails to be set.
        drop(send.set_priority(self.priority));
        let result = self.talk(&mut send, &mut receive).await;
        match &result {
            // A stream that is dropped finishes as if all were said; what failed must not look like that.
            Err(_) => drop(send.reset((CloseCode::Stopping as u32).into())),
            Ok(()) => drop(send.finish()),
        }
        result
    }

    async fn talk(&mut self, send: &mut quinn::SendStream, receive: &mut quinn::RecvStream) -> Result<(), UploadError> {
        let Self { connection, spool, state, episode, priority, whole, turns, wanted, replies } = self;
        let rank = (Reverse(*priority), episode.ordinal);
        let sender = Sender { connection, spool, state, episode, turns, rank };
        let offering = async {
            let manifest = match spool.manifest_at_hand(episode) {
                Some(manifest) => manifest,
                None => read(spool, episode, Spool::read_manifest).await?,
            };
            let first = if *whole { Message::Offer(manifest) } else { Message::Describe(manifest) };
            patiently(connection, write_message(send, &first)).await?;
            Ok::<_, UploadError>(answer(connection, receive).await?)
        };
        let mut reply = tokio::select! {
            reply = offering => reply?,
            _ = wanted.recv() => return Err(UploadError::GivenUp),
        };
        loop {
            let more = matches!(reply, UploadReply::Want(_));
            replies.send(reply).await.map_err(|_| UploadError::GivenUp)?;
            if !more {
                return Ok(());
            }
            let want = wanted.recv().await.ok_or(UploadError::GivenUp)?;
            let exchange = async {
                let mut answer = pin!(answer(connection, receive));
                // The hub may refuse in the middle: listen while sending.
                tokio::select! {
                    biased;
                    early = &mut answer => Ok::<_, UploadError>(early?),
                    sent = sender.send_chunks(send, &want) => {
                        sent?;
                        Ok(answer.await?)
                    }
                }
            };
            reply = tokio::select! {
                biased;
                reply = exchange => reply?,
                // Until the hub's next answer, the session has nothing to say but that it gives the upload up.
                _ = wanted.recv() => return Err(UploadError::GivenUp),
            };
        }
    }
}

/// Sends one episode's chunks.
struct Sender<'a> {
    connection: &'a quinn::Connection,
    spool: &'a Spool,
    state: &'a SharedStatus,
    episode: &'a StoredEpisode,
    turns: &'a UploadTurns,
    rank: Rank,
}

impl Sender<'_> {
    /// Sends what the hub wants, each chunk from the first byte that the hub lacks. While one is sent, the next one is
    /// read.
    async fn send_chunks(&self, send: &mut quinn::SendStream, want: &Want) -> Result<(), UploadError> {
        let mut wanted = (0..self.episode.chunks().count()).filter(|&index| want.contains(index));
        let Some(mut index) = wanted.next() else { return Ok(()) };
        let mut read = self.read_chunk(index).await?;
        loop {
            let next = wanted.next();
            let sending = self.send_chunk(send, index, read, want.begins_at(index));
            let Some(next) = next else { return sending.await };
            let ((), ahead) = tokio::try_join!(sending, self.read_chunk(next))?;
            (index, read) = (next, ahead);
        }
    }

    async fn send_chunk(
        &self,
        send: &mut quinn::SendStream,
        index: usize,
        (bytes, _read): (Vec<u8>, Turn),
        from: usize,
    ) -> Result<(), UploadError> {
        let Some(chunk) = self.episode.chunks().nth(index) else { return Ok(()) };
        let from = if from < bytes.len() { from } else { 0 };
        let bytes = Bytes::from(bytes).slice(from..);
        let head = Bytes::from(chunk_head(chunk.id, from as u32, &bytes));
        // A wait without a bound: it ends when those ahead are sent, given up or broken.
        let _turn = self.turns.send.wait(self.rank).await;
        patiently(self.connection, write_bytes(send, head)).await?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let piece = rest.split_to(PIECE_BYTES.min(rest.len()));
            let piece_bytes = piece.len() as u64;
            patiently(self.connection, write_bytes(send, piece)).await?;
            self.state.sent(piece_bytes);
        }
        Ok(())
    }

    /// A chunk, and the right to have it in memory.
    async fn read_chunk(&self, index: usize) -> Result<(Vec<u8>, Turn), UploadError> {
        let turn = self.turns.read.wait(self.rank).await;
        let bytes = match self.spool.chunk_at_hand(self.episode, index) {
            Some(bytes) => bytes,
            None => read(self.spool, self.episode, move |spool, episode| spool.read_chunk(episode, index)).await?,
        };
        Ok((bytes, turn))
    }
}

/// Reads from the spool on a thread that may wait for the disk; it begins at once.
fn read<R>(
    spool: &Spool,
    episode: &StoredEpisode,
    read: R,
) -> impl Future<Output = Result<Vec<u8>, UploadError>> + use<R>
where
    R: FnOnce(&Spool, &StoredEpisode) -> Result<Vec<u8>, ReadError> + Send + 'static,
{
    let (spool, episode) = (spool.clone(), episode.clone());
    let read = tokio::task::spawn_blocking(move || read(&spool, &episode));
    async { Ok(read.await.map_err(|_| UploadError::Task)??) }
}

/// The hub's next answer, which it owes us.
async fn answer(connection: &quinn::Connection, receive: &mut quinn::RecvStream) -> Result<UploadReply, WireError> {
    match patiently(connection, read_message(receive)).await? {
        Message::Want(want) => Ok(UploadReply::Want(want)),
        Message::Later(later) => Ok(UploadReply::Later(later)),
        Message::Reject(reject) => Ok(UploadReply::Reject(reject)),
        Message::Durable(receipt) => Ok(UploadReply::Durable(receipt)),
        Message::Noted => Ok(UploadReply::Noted),
        Message::Report(_)
        | Message::Assign(_)
        | Message::Root(_)
        | Message::Ping(_)
        | Message::Pong(_)
        | Message::UploadPolicy(_)
        | Message::Describe(_)
        | Message::Wanted(_)
        | Message::Offer(_)
        | Message::Chunk(_)
        | Message::ChunkRest(_)
        | Message::Fetch(_)
        | Message::Found(_)
        | Message::Missing
        | Message::Evicted(_)
        | Message::EvictionsStored(_) => Err(WireError::Unexpected("something else on an upload stream")),
    }
}
