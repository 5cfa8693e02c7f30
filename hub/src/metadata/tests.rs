//! What the metadata promises.
