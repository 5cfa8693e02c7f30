//! A disk under an object store: an object may be visible before it is durable, and a power cut takes what is not.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, Weak};

use async_trait::async_trait;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _};
use object_store::memory::InMemory;
use object_store::path::Path as Key;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt as _,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;

use super::{Meeting, Power};
use crate::store::Settle;

/// What may go wrong with the next put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PutFault {
    None,
    /// No room: nothing happens.
    Full,
    /// An error after the name appeared and before it was synced.
    FailedVisible,
    /// An error before anything happened.
    Failed,
    /// The power goes before.
    CutBefore,
    /// The power goes when the name has appeared and is not synced.
    CutVisible,
    /// The power goes when all is durable.
    CutAfter,
}

impl PutFault {
    pub(super) fn draw(rng: &mut ChaCha8Rng) -> Self {
        match rng.random_range(0..16) {
            0 => Self::Full,
            1 | 2 => Self::FailedVisible,
            3 => Self::Failed,
            4 => Self::CutBefore,
            5 | 6 => Self::CutVisible,
            7 => Self::CutAfter,
            _ => Self::None,
        }
    }
}

/// What may go wrong with the next deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeleteFault {
    None,
    /// An error: nothing happens.
    Failed,
    /// The power goes before.
    CutBefore,
    /// The power goes when the name is gone, which may not have reached the disk.
    CutGone,
}

impl DeleteFault {
    pub(super) fn draw(rng: &mut ChaCha8Rng) -> Self {
        match rng.random_range(0..8) {
            0 => Self::Failed,
            1 => Self::CutBefore,
            2 => Self::CutGone,
            _ => Self::None,
        }
    }
}

/// Objects in memory, and which of them a power cut may take.
#[derive(Debug)]
pub(super) struct Objects {
    visible: InMemory,
    state: Mutex<State>,
    power: Arc<Power>,
    /// Where a sweep comes between a put and its registration, if nothing hinders it.
    meeting: Arc<Meeting>,
    itself: Weak<Self>,
}

#[derive(Debug)]
struct State {
    fault: PutFault,
    delete_fault: DeleteFault,
    /// Objects whose deletion a power cut may undo.
    deleted: BTreeMap<Key, PutPayload>,
    /// Whether each object is durable.
    durable: BTreeMap<Key, bool>,
}

impl Objects {
    pub(super) fn new(power: Arc<Power>, meeting: Arc<Meeting>) -> Arc<Self> {
        let (fault, delete_fault) = (PutFault::None, DeleteFault::None);
        let state = State { fault, delete_fault, deleted: BTreeMap::new(), durable: BTreeMap::new() };
        let (visible, state) = (InMemory::new(), Mutex::new(state));
        Arc::new_cyclic(|itself| Self { visible, state, power, meeting, itself: itself.clone() })
    }

    /// Sets what goes wrong with the next deletion.
    pub(super) fn arm_delete(&self, fault: DeleteFault) {
        self.state.lock().unwrap().delete_fault = fault;
    }

    async fn take_away(&self, key: &Key) -> object_store::Result<()> {
        let fault = std::mem::replace(&mut self.state.lock().unwrap().delete_fault, DeleteFault::None);
        match fault {
            DeleteFault::Failed => return Err(error(io::ErrorKind::Other)),
            DeleteFault::CutBefore => self.power.cut().await,
            DeleteFault::None | DeleteFault::CutGone => {}
        }
        let bytes = self.visible.get(key).await?.bytes().await?;
        self.visible.delete(key).await?;
        {
            let mut state = self.state.lock().unwrap();
            state.durable.remove(key);
            state.deleted.insert(key.clone(), bytes.into());
        }
        if fault == DeleteFault::CutGone {
            self.power.cut().await;
        }
        Ok(())
    }

    /// Sets what goes wrong with the next put.
    pub(super) fn arm(&self, fault: PutFault) {
        self.state.lock().unwrap().fault = fault;
    }

    /// Takes an arbitrary part of what is not durable; the rest turns out to have reached the disk.
    pub(super) fn lose_power(&self, rng: &mut ChaCha8Rng) {
        let mut state = self.state.lock().unwrap();
        (state.fault, state.delete_fault) = (PutFault::None, DeleteFault::None);
        for (key, bytes) in std::mem::take(&mut state.deleted) {
            if rng.random_bool(0.5) {
                self.visible.put(&key, bytes).now_or_never().expect("memory answers at once").unwrap();
                state.durable.insert(key, true);
            }
        }
        let unsynced: Vec<Key> =
            state.durable.iter().filter(|(_, durable)| !**durable).map(|(key, _)| key.clone()).collect();
        for key in unsynced {
            if rng.random_bool(0.5) {
                self.visible.delete(&key).now_or_never().expect("memory answers at once").unwrap();
                state.durable.remove(&key);
            } else {
                state.durable.insert(key, true);
            }
        }
    }

    fn mark(&self, key: &Key, durable: bool) {
        let mut state = self.state.lock().unwrap();
        let known = state.durable.entry(key.clone()).or_insert(durable);
        *known |= durable;
        state.deleted.remove(key);
    }
}

impl Settle for Objects {
    fn settle(&self, key: &Key) -> BoxFuture<'static, io::Result<()>> {
        self.mark(key, true);
        let meeting = self.meeting.clone();
        Box::pin(async move {
            meeting.created().await;
            Ok(())
        })
    }
}

impl fmt::Display for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the model's disk")
    }
}

fn error(kind: io::ErrorKind) -> object_store::Error {
    object_store::Error::Generic { store: "model", source: Box::new(io::Error::from(kind)) }
}

#[async_trait]
impl ObjectStore for Objects {
    async fn put_opts(&self, key: &Key, bytes: PutPayload, options: PutOptions) -> object_store::Result<PutResult> {
        assert_eq!(options.mode, PutMode::Create, "objects are created, never changed");
        let fault = std::mem::replace(&mut self.state.lock().unwrap().fault, PutFault::None);
        match fault {
            PutFault::Full => return Err(error(io::ErrorKind::StorageFull)),
            PutFault::Failed => return Err(error(io::ErrorKind::Other)),
            PutFault::CutBefore => self.power.cut().await,
            PutFault::None | PutFault::FailedVisible | PutFault::CutVisible | PutFault::CutAfter => {}
        }
        let put = self.visible.put_opts(key, bytes, options).await?;
        self.mark(key, false);
        match fault {
            PutFault::FailedVisible => return Err(error(io::ErrorKind::Other)),
            PutFault::CutVisible => self.power.cut().await,
            PutFault::CutAfter => {
                self.mark(key, true);
                self.power.cut().await
            }
            PutFault::None | PutFault::Full | PutFault::Failed | PutFault::CutBefore => self.mark(key, true),
        }
        self.meeting.created().await;
        Ok(put)
    }

    async fn put_multipart_opts(
        &self,
        key: &Key,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.visible.put_multipart_opts(key, options).await
    }

    async fn get_opts(&self, key: &Key, options: GetOptions) -> object_store::Result<GetResult> {
        self.visible.get_opts(key, options).await
    }

    fn delete_stream(
        &self,
        keys: BoxStream<'static, object_store::Result<Key>>,
    ) -> BoxStream<'static, object_store::Result<Key>> {
        let itself = self.itself.upgrade().expect("it is in use");
        keys.then(move |key| {
            let objects = itself.clone();
            async move {
                let key = key?;
                objects.take_away(&key).await?;
                Ok(key)
            }
        })
        .boxed()
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.visible.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> object_store::Result<ListResult> {
        self.visible.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Key, to: &Key, options: CopyOptions) -> object_store::Result<()> {
        self.visible.copy_opts(from, to, options).await
    }
}
