//! One download stream: a blob of a release, from the offset that the robot asks for.

use quinn::SendStream;
use tracing::{debug, warn};
use zunft_protocol::message::{Fetch, Found, Message, PRIORITY_FETCH};

use super::connection::Robot;
use super::wire::{self, WireError};
use crate::store::blob_key;

/// Bytes read from the store at once: enough to keep the disk busy, little enough for a thousand robots at once.
const PIECE_BYTES: u64 = 256 * 1024;

/// Answers a fetch. Only blobs of the robot's own tenant exist for it.
pub(super) async fn serve(robot: &Robot, fetch: Fetch, mut send: SendStream) -> Result<(), WireError> {
    let tenant = &robot.identity.tenant;
    if let Err(error) = send.set_priority(PRIORITY_FETCH) {
        debug!(%error, "the robot gave the download up");
        return Ok(());
    }
    let bytes_total = match robot.services.metadata.blob(tenant, fetch.digest).await {
        Ok(Some(bytes_total)) => bytes_total,
        Ok(None) => {
            wire::write(&mut send, &Message::Missing.encode(), robot.stall()).await?;
            wire::finish(&mut send);
            return Ok(());
        }
        Err(error) => {
            warn!(error = &error as &dyn std::error::Error, "a blob could not be looked up");
            return Ok(());
        }
    };
    wire::write(&mut send, &Message::Found(Found { bytes_total }).encode(), robot.stall()).await?;
    let key = blob_key(tenant, fetch.digest);
    let mut position = fetch.offset.min(bytes_total);
    while position < bytes_total {
        let end = bytes_total.min(position + PIECE_BYTES);
        match robot.services.store.read_range(&key, position..end).await {
            Ok(piece) => wire::write(&mut send, &piece, robot.stall()).await?,
            Err(error) => {
                // Dropping the stream would end it as if it were complete; the robot sees a reset instead.
                warn!(digest = %fetch.digest, error = &error as &dyn std::error::Error, "a blob could not be read");
                if send.reset(super::code(zunft_protocol::message::CloseCode::Overloaded)).is_err() {
                    debug!("the robot gave the download up");
                }
                return Ok(());
            }
        }
        position = end;
    }
    wire::finish(&mut send);
    Ok(())
}
