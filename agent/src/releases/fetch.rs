//! Where releases come from, as the installer sees it: blobs by digest, from an offset on.

use zunft_protocol::ids::Digest;

/// Why a blob did not arrive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// No hub at the moment.
    #[error("the hub is not connected")]
    NotConnected,
    /// The hub does not have it, or not for this robot.
    #[error("the hub has no blob {digest} for this robot")]
    Missing {
        /// Which.
        digest: Digest,
    },
    /// The stream broke or stood still.
    #[error("the download of {digest} broke off: {reason}")]
    Broken {
        /// Which.
        digest: Digest,
        /// How.
        reason: String,
    },
}

/// A blob on its way.
pub struct Download {
    /// Size of the whole blob.
    pub bytes_total: u64,
    /// Its bytes from the offset on, piece by piece; ends early only with an error.
    pub parts: Box<dyn Iterator<Item = Result<Vec<u8>, FetchError>>>,
}

/// Who can fetch blobs.
pub trait Fetch: Send {
    /// Opens the blob with this digest, leaving out the first `offset` bytes.
    fn open(&mut self, digest: Digest, offset: u64) -> Result<Download, FetchError>;
}
