//! Why the store cannot keep or give something, and what an operator does about it.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use object_store::client::{HttpError, HttpErrorKind};
use object_store::path::Path as Key;

use crate::causes::with_causes;

/// Why the store cannot keep or give something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk or the quota is full.
    #[error("the disk of the experience store is full; make room, robots will try again by themselves")]
    Full {
        /// The cause.
        #[source]
        source: Box<object_store::Error>,
    },
    /// An object that should be there.
    #[error("object {key} is missing from the experience store; restore it from a backup")]
    Missing {
        /// Which.
        key: String,
    },
    /// Another object is in its place.
    #[error("object {key} has {found} bytes where {expected} belong; `zunft fsck --repair` moves it away")]
    Foreign {
        /// Which.
        key: String,
        /// Its size.
        found: u64,
        /// The size it should have.
        expected: u64,
    },
    /// Its bytes are not those that its name was made of.
    #[error("object {key} is damaged; `zunft fsck --repair` moves it away")]
    Damaged {
        /// Which.
        key: String,
    },
    /// It is there, and could not be made to stay.
    #[error("object {key} could not be made durable")]
    Unsettled {
        /// Which.
        key: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The key.
    #[error(
        "{place} refuses the hub's key; check store.s3.access_key_id, store.s3.secret_access_key and what the bucket's \
         policy allows them"
    )]
    Refused {
        /// Which store.
        place: String,
        /// Its words.
        #[source]
        source: Box<object_store::Error>,
    },
    /// The bucket.
    #[error("there is no {place}; create the bucket, or correct store.url")]
    NoBucket {
        /// Which.
        place: String,
        /// The store's words.
        #[source]
        source: Box<object_store::Error>,
    },
    /// The network.
    #[error("{place} cannot be reached; check store.s3.endpoint and the network")]
    Unreachable {
        /// Which store.
        place: String,
        /// The cause.
        #[source]
        source: Box<object_store::Error>,
    },
    /// The store ignores create-only puts.
    #[error(
        "{place} ignores create-only puts (If-None-Match: *); use a store that honours them, or accept it with \
         store.accept_unconditional_put = true"
    )]
    Unconditional {
        /// Which store.
        place: String,
    },
    /// The settings for the store.
    #[error("{place} cannot be set up; check [store.s3]")]
    Setup {
        /// Which store.
        place: String,
        /// What is wrong.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The store failed.
    #[error("{place} failed at object {key}")]
    Failed {
        /// Which store.
        place: String,
        /// Which object.
        key: String,
        /// The cause.
        #[source]
        source: Box<object_store::Error>,
    },
    /// The directory cannot be used.
    #[error("could not use {} as the experience store", path.display())]
    Open {
        /// Which directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl StoreError {
    /// What an operator can do about a store's error at one of its objects.
    pub(super) fn of(place: &str, key: &Key, source: object_store::Error) -> Self {
        let (place, key, source) = (place.to_owned(), key.to_string(), Box::new(source));
        let text = with_causes(source.as_ref());
        if disk_is_full(source.as_ref()) || text.contains("StorageFull") {
            Self::Full { source }
        } else if text.contains("NoSuchBucket") {
            Self::NoBucket { place, source }
        } else if matches!(*source, object_store::Error::NotFound { .. }) {
            Self::Missing { key }
        } else if refused(&source) {
            Self::Refused { place, source }
        } else if unreachable(source.as_ref()) {
            Self::Unreachable { place, source }
        } else {
            Self::Failed { place, key, source }
        }
    }
}

/// Whether a server refuses the hub, and not a file system.
fn refused(error: &object_store::Error) -> bool {
    use object_store::Error::{PermissionDenied, Unauthenticated};
    let (PermissionDenied { source, .. } | Unauthenticated { source, .. }) = error else { return false };
    source.downcast_ref::<io::Error>().is_none()
}

/// Whether the network is somewhere among the causes.
fn unreachable(error: &(dyn Error + 'static)) -> bool {
    causes(error).filter_map(|error| error.downcast_ref::<HttpError>()).any(|error| {
        matches!(error.kind(), HttpErrorKind::Connect | HttpErrorKind::Timeout | HttpErrorKind::Interrupted)
    })
}

/// Whether a full disk or quota is somewhere among the causes.
pub(crate) fn disk_is_full(error: &(dyn Error + 'static)) -> bool {
    causes(error)
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .any(|error| matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
}

/// The error and those that brought it about.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    })
}
