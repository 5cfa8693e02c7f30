//! One blob's stream: from the hub to the installer, piece by piece.

use tokio::sync::mpsc;
use zunft_protocol::ids::Digest;
use zunft_protocol::message::{CloseCode, Fetch as FetchMessage, Message, PRIORITY_FETCH};

use super::wire::{STANDSTILL_MAX, WireError, read_message, write_urgently};
use crate::releases::{Download, Fetch, FetchError};

/// Largest piece handed to the installer.
const PIECE_BYTES_MAX: usize = 64 * 1024;

/// Pieces that may wait for the installer's disk; then the stream waits, and the hub with it.
const PIECES_MAX: usize = 4;

/// Downloads that may be asked for at once: the installer asks for one.
pub(super) const REQUESTS_MAX: usize = 2;

/// What the installer gets.
enum Piece {
    Total(u64),
    Bytes(Vec<u8>),
}

/// A blob that the installer wants.
pub(super) struct Request {
    digest: Digest,
    offset: u64,
    pieces: mpsc::Sender<Result<Piece, FetchError>>,
}

/// The installer's way to the hub.
pub(crate) struct HubFetch {
    requests: mpsc::Sender<Request>,
    connected: tokio::sync::watch::Receiver<bool>,
}

impl HubFetch {
    pub(super) fn new(requests: mpsc::Sender<Request>, connected: tokio::sync::watch::Receiver<bool>) -> Self {
        Self { requests, connected }
    }
}

impl Fetch for HubFetch {
    fn open(&mut self, digest: Digest, offset: u64) -> Result<Download, FetchError> {
        if !*self.connected.borrow() {
            return Err(FetchError::NotConnected);
        }
        let (pieces, mut arriving) = mpsc::channel(PIECES_MAX);
        let request = Request { digest, offset, pieces };
        self.requests.blocking_send(request).map_err(|_| FetchError::NotConnected)?;
        let broken = move |reason: &str| FetchError::Broken { digest, reason: reason.to_owned() };
        let bytes_total = match arriving.blocking_recv().ok_or(FetchError::NotConnected)?? {
            Piece::Total(bytes) => bytes,
            Piece::Bytes(_) => return Err(broken("its size did not come first")),
        };
        let mut have = offset;
        let parts = std::iter::from_fn(move || {
            if have >= bytes_total {
                return None;
            }
            let bytes = match arriving.blocking_recv() {
                Some(Ok(Piece::Bytes(bytes))) => bytes,
                Some(Ok(Piece::Total(_))) | None => return Some(Err(broken("the connection was lost"))),
                Some(Err(error)) => return Some(Err(error)),
            };
            have += bytes.len() as u64;
            Some(Ok(bytes))
        });
        Ok(Download { bytes_total, parts: Box::new(parts) })
    }
}

/// Carries one blob.
pub(super) async fn run(connection: quinn::Connection, request: Request) {
    if let Err(error) = carry(&connection, &request).await {
        // The installer may have given up; then nobody needs the reason.
        drop(request.pieces.send(Err(error)).await);
    }
}

async fn carry(connection: &quinn::Connection, request: &Request) -> Result<(), FetchError> {
    let digest = request.digest;
    let broken = |error: WireError| FetchError::Broken { digest, reason: crate::text::chain(&error) };
    let (mut send, mut receive) = connection.open_bi().await.map_err(|error| broken(error.into()))?;
    drop(send.set_priority(PRIORITY_FETCH));
    let fetch = Message::Fetch(FetchMessage { digest, offset: request.offset });
    write_urgently(connection, &mut send, &fetch).await.map_err(broken)?;
    drop(send.finish());
    let answer = tokio::time::timeout(STANDSTILL_MAX, read_message(&mut receive)).await;
    let answer = answer.map_err(|_| broken(WireError::Standstill))?.map_err(broken)?;
    let total = if let Message::Found(found) = answer {
        found.bytes_total
    } else if answer == Message::Missing {
        return Err(FetchError::Missing { digest });
    } else {
        return Err(broken(WireError::Unexpected("something else on a fetch stream")));
    };
    let gone = || FetchError::NotConnected;
    request.pieces.send(Ok(Piece::Total(total))).await.map_err(|_| gone())?;
    let mut have = request.offset;
    while have < total {
        let read = tokio::time::timeout(STANDSTILL_MAX, receive.read_chunk(PIECE_BYTES_MAX, true)).await;
        let chunk = read.map_err(|_| broken(WireError::Standstill))?;
        let chunk = chunk.map_err(|error| broken(WireError::Read(error.to_string())))?;
        let chunk = chunk.ok_or_else(|| broken(WireError::Ended))?;
        have += chunk.bytes.len() as u64;
        if request.pieces.send(Ok(Piece::Bytes(chunk.bytes.to_vec()))).await.is_err() {
            drop(receive.stop((CloseCode::Stopping as u32).into()));
            return Err(gone());
        }
    }
    Ok(())
}
