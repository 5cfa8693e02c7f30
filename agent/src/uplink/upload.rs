//! One episode's stream: its offer, the chunks that the hub wants, and the hub's answer.
//!
//! It decides nothing: the session says what to send, and whether the episode may be freed.

use std::pin::pin;

use tokio::sync::mpsc;
use zunft_protocol::message::{ChunkBytes, CloseCode, Message, Want};
use zunft_protocol::session::UploadReply;

use super::wire::{STANDSTILL_MAX, WireError, read_message, write, write_message};
use crate::spool::{ReadError, Spool, StoredEpisode};

/// Why an upload broke.
#[derive(Debug, thiserror::Error)]
pub(super) enum UploadError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("the episode could not be read from the spool")]
    Spool(#[from] ReadError),
    #[error("the upload was given up")]
    GivenUp,
}

/// What an upload works with.
pub(super) struct Upload {
    pub(super) connection: quinn::Connection,
    pub(super) spool: Spool,
    pub(super) episode: StoredEpisode,
    pub(super) priority: i32,
    /// What the session wants sent; closed when the upload is given up.
    pub(super) wanted: mpsc::Receiver<Want>,
    /// The hub's answers.
    pub(super) replies: mpsc::Sender<UploadReply>,
}

impl Upload {
    /// Runs until the hub has said its last word on this stream. Returns the bytes of chunks sent.
    pub(super) async fn run(mut self) -> Result<u64, UploadError> {
        let (mut send, mut receive) = self.connection.open_bi().await.map_err(WireError::from)?;
        // The priority of a stream that is still open never fails to be set.
        drop(send.set_priority(self.priority));
        let result = self.talk(&mut send, &mut receive).await;
        match &result {
            // A stream that is dropped finishes as if all were said; what failed must not look like that.
            Err(_) => drop(send.reset((CloseCode::Stopping as u32).into())),
            Ok(_) => drop(send.finish()),
        }
        result
    }

    async fn talk(
        &mut self,
        send: &mut quinn::SendStream,
        receive: &mut quinn::RecvStream,
    ) -> Result<u64, UploadError> {
        let manifest = self.read(Spool::read_manifest).await?;
        write_message(send, &Message::Offer(manifest)).await?;
        let mut sent = 0;
        let mut reply = patient(receive).await?;
        loop {
            let more = matches!(reply, UploadReply::Want(_));
            self.replies.send(reply).await.map_err(|_| UploadError::GivenUp)?;
            if !more {
                return Ok(sent);
            }
            let want = self.wanted.recv().await.ok_or(UploadError::GivenUp)?;
            // The hub may refuse in the middle: listen while sending.
            let mut answer = pin!(patient(receive));
            reply = tokio::select! {
                biased;
                early = &mut answer => early?,
                bytes = self.send_chunks(send, &want) => {
                    sent += bytes?;
                    answer.await?
                }
            };
        }
    }

    async fn send_chunks(&self, send: &mut quinn::SendStream, want: &Want) -> Result<u64, UploadError> {
        let ids: Vec<_> = self.episode.chunks().map(|chunk| chunk.id).collect();
        let mut sent = 0;
        for (index, id) in ids.into_iter().enumerate().filter(|(index, _)| want.contains(*index)) {
            let bytes = self.read(move |spool, episode| spool.read_chunk(episode, index)).await?;
            sent += bytes.len() as u64;
            write(send, &Message::Chunk(ChunkBytes { id, bytes }).encode()).await?;
        }
        Ok(sent)
    }

    /// Reads from the spool on a thread that may wait for the disk.
    async fn read(
        &self,
        read: impl FnOnce(&Spool, &StoredEpisode) -> Result<Vec<u8>, ReadError> + Send + 'static,
    ) -> Result<Vec<u8>, UploadError> {
        let (spool, episode) = (self.spool.clone(), self.episode.clone());
        let read = tokio::task::spawn_blocking(move || read(&spool, &episode)).await;
        Ok(read.map_err(|_| UploadError::GivenUp)??)
    }
}

/// The hub's next answer, which it owes us within the bound.
async fn patient(receive: &mut quinn::RecvStream) -> Result<UploadReply, WireError> {
    let message = tokio::time::timeout(STANDSTILL_MAX, read_message(receive)).await;
    match message.map_err(|_| WireError::Standstill)?? {
        Message::Want(want) => Ok(UploadReply::Want(want)),
        Message::Later(later) => Ok(UploadReply::Later(later)),
        Message::Reject(reject) => Ok(UploadReply::Reject(reject)),
        Message::Durable(receipt) => Ok(UploadReply::Durable(receipt)),
        Message::Report(_)
        | Message::Assign(_)
        | Message::Root(_)
        | Message::Offer(_)
        | Message::Chunk(_)
        | Message::Fetch(_)
        | Message::Found(_)
        | Message::Missing
        | Message::Evicted(_)
        | Message::EvictionsStored(_) => Err(WireError::Unexpected("something else on an upload stream")),
    }
}
