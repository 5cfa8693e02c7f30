//! One episode's stream: its offer, the chunks that the hub wants, and the hub's answer.
//!
//! It decides nothing: the session says what to send, and whether the episode may be freed.

use std::pin::pin;
use std::sync::Arc;

use tokio::sync::mpsc;
use zunft_protocol::message::{ChunkBytes, ChunkRest, CloseCode, Message, Want};
use zunft_protocol::session::UploadReply;

use super::SharedStatus;
use super::wire::{WireError, patiently, read_message, write, write_message};
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

/// What an upload works with.
pub(super) struct Upload {
    pub(super) connection: quinn::Connection,
    pub(super) spool: Spool,
    pub(super) state: Arc<SharedStatus>,
    pub(super) episode: StoredEpisode,
    pub(super) priority: i32,
    /// What the session wants sent; closed when the upload is given up.
    pub(super) wanted: mpsc::Receiver<Want>,
    /// The hub's answers.
    pub(super) replies: mpsc::Sender<UploadReply>,
}

impl Upload {
    /// Runs until the hub has said its last word on this stream, or the session gives the upload up.
    pub(super) async fn run(mut self) -> Result<(), UploadError> {
        let (mut send, mut receive) = self.connection.open_bi().await.map_err(WireError::from)?;
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
        let Self { connection, spool, state, episode, wanted, replies, .. } = self;
        let manifest = read(spool, episode, Spool::read_manifest).await?;
        patiently(connection, write_message(send, &Message::Offer(manifest))).await?;
        let mut reply = answer(connection, receive).await?;
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
                    sent = send_chunks(connection, spool, state, episode, send, &want) => {
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

/// Sends what the hub wants, each chunk from the first byte that the hub lacks.
async fn send_chunks(
    connection: &quinn::Connection,
    spool: &Spool,
    state: &SharedStatus,
    episode: &StoredEpisode,
    send: &mut quinn::SendStream,
    want: &Want,
) -> Result<(), UploadError> {
    let ids: Vec<_> = episode.chunks().map(|chunk| chunk.id).collect();
    for (index, id) in ids.into_iter().enumerate().filter(|(index, _)| want.contains(*index)) {
        let mut bytes = read(spool, episode, move |spool, episode| spool.read_chunk(episode, index)).await?;
        let from = want.begins_at(index);
        let message = if from == 0 || from >= bytes.len() {
            Message::Chunk(ChunkBytes { id, bytes })
        } else {
            bytes.drain(..from);
            Message::ChunkRest(ChunkRest { id, from: from as u32, bytes })
        };
        let encoded = message.encode();
        for piece in encoded.chunks(PIECE_BYTES) {
            patiently(connection, write(send, piece)).await?;
            state.sent(piece.len() as u64);
        }
    }
    Ok(())
}

/// Reads from the spool on a thread that may wait for the disk.
async fn read(
    spool: &Spool,
    episode: &StoredEpisode,
    read: impl FnOnce(&Spool, &StoredEpisode) -> Result<Vec<u8>, ReadError> + Send + 'static,
) -> Result<Vec<u8>, UploadError> {
    let (spool, episode) = (spool.clone(), episode.clone());
    let read = tokio::task::spawn_blocking(move || read(&spool, &episode)).await;
    Ok(read.map_err(|_| UploadError::Task)??)
}

/// The hub's next answer, which it owes us.
async fn answer(connection: &quinn::Connection, receive: &mut quinn::RecvStream) -> Result<UploadReply, WireError> {
    match patiently(connection, read_message(receive)).await? {
        Message::Want(want) => Ok(UploadReply::Want(want)),
        Message::Later(later) => Ok(UploadReply::Later(later)),
        Message::Reject(reject) => Ok(UploadReply::Reject(reject)),
        Message::Durable(receipt) => Ok(UploadReply::Durable(receipt)),
        Message::Report(_)
        | Message::Assign(_)
        | Message::Root(_)
        | Message::Ping(_)
        | Message::Pong(_)
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
