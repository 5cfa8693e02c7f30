//! What every store promises, tried on each that the hub can use: memory, a local directory, S3, and a store that
//! ignores create-only puts.

use std::fmt;
use std::path::PathBuf;

use async_trait::async_trait;
use futures::future::join_all;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, PutMultipartOptions, PutOptions,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::config::S3Config;
use crate::fixtures::servers::{self, BUCKET};
use crate::fixtures::tenant;

/// More than one request's or write's worth.
const BIG_BYTES: usize = 12 * 1024 * 1024;

/// Puts of one object at once.
const RIVALS: usize = 8;

/// Everything that a store promises; the store may hold other objects already.
async fn keeps_its_promises(store: &Store) {
    let salt = format!("{:032x}", rand::random::<u128>());
    create_only(store, &salt).await;
    ranges_and_absence(store, &salt).await;
    large_objects(store, &salt).await;
    rivals(store, &salt).await;
}

async fn create_only(store: &Store, salt: &str) {
    let key = blob_key(&tenant(), Digest::of(salt.as_bytes()));
    let put = async |bytes: &'static [u8]| store.put(&key, PutPayload::from_static(bytes)).await;
    put(b"bytes").await.unwrap();
    put(b"bytes").await.unwrap();
    assert!(matches!(put(b"other bytes").await, Err(StoreError::Foreign { found: 5, expected: 11, .. })));
    assert!(matches!(put(b"bytez").await, Err(StoreError::Damaged { .. })));
    assert_eq!(store.read(&key).await.unwrap(), "bytes", "the first one stays");
}

async fn ranges_and_absence(store: &Store, salt: &str) {
    let key = pack_key(&tenant(), Digest::of(format!("{salt}/ranges").as_bytes()));
    let missing = store.read(&key).await;
    assert!(matches!(missing, Err(StoreError::Missing { key: named }) if named == key.as_ref()));
    assert!(matches!(store.read_range(&key, 0..1).await, Err(StoreError::Missing { .. })));
    store.put(&key, PutPayload::from_static(b"0123456789")).await.unwrap();
    for (range, expect) in [(0..1, "0"), (3..7, "3456"), (9..10, "9"), (0..10, "0123456789")] {
        assert_eq!(store.read_range(&key, range).await.unwrap(), expect);
    }
    assert!(store.read_range(&key, 20..30).await.is_err(), "nothing lies there");
    let neighbour = blob_key(&"other".parse().unwrap(), Digest::of(salt.as_bytes()));
    assert!(matches!(store.read(&neighbour).await, Err(StoreError::Missing { .. })), "a tenant's own");
}

async fn large_objects(store: &Store, salt: &str) {
    let key = pack_key(&tenant(), Digest::of(format!("{salt}/large").as_bytes()));
    let bytes: Bytes = (0..BIG_BYTES).map(|i| (i / 251) as u8).collect::<Vec<u8>>().into();
    // Packs come in many parts.
    let parts = || bytes.chunks(100_000).map(Bytes::copy_from_slice).collect::<PutPayload>();
    store.put(&key, parts()).await.unwrap();
    store.put(&key, parts()).await.unwrap();
    assert!(store.read(&key).await.unwrap() == bytes);
    let range = BIG_BYTES - 70_000..BIG_BYTES - 3;
    assert!(store.read_range(&key, range.start as u64..range.end as u64).await.unwrap() == bytes.slice(range));
}

async fn rivals(store: &Store, salt: &str) {
    let key = pack_key(&tenant(), Digest::of(format!("{salt}/rivals").as_bytes()));
    let payload: PutPayload = Bytes::from(vec![7; 300_000]).into();
    for result in join_all((0..RIVALS).map(|_| store.put(&key, payload.clone()))).await {
        result.unwrap();
    }
    assert!(store.read(&key).await.unwrap().iter().all(|&byte| byte == 7));
}

/// A store that takes every put, whatever was asked: Garage and s3rver do so.
#[derive(Debug)]
struct Unconditional(InMemory);

impl fmt::Display for Unconditional {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a store without conditions")
    }
}

#[async_trait]
impl ObjectStore for Unconditional {
    async fn put_opts(&self, key: &Key, bytes: PutPayload, _: PutOptions) -> object_store::Result<PutResult> {
        self.0.put_opts(key, bytes, PutMode::Overwrite.into()).await
    }

    async fn put_multipart_opts(
        &self,
        key: &Key,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(key, options).await
    }

    async fn get_opts(&self, key: &Key, options: GetOptions) -> object_store::Result<GetResult> {
        self.0.get_opts(key, options).await
    }

    fn delete_stream(
        &self,
        keys: BoxStream<'static, object_store::Result<Key>>,
    ) -> BoxStream<'static, object_store::Result<Key>> {
        self.0.delete_stream(keys)
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.0.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> object_store::Result<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Key, to: &Key, options: CopyOptions) -> object_store::Result<()> {
        self.0.copy_opts(from, to, options).await
    }
}

#[tokio::test]
async fn memory_keeps_what_a_store_promises() {
    let store = Store::of_objects(Arc::new(InMemory::new())).probed(false).await.unwrap();
    keeps_its_promises(&store).await;
}

#[tokio::test]
async fn a_local_directory_keeps_what_a_store_promises() {
    let folder = tempfile::tempdir().unwrap();
    let place = StorePlace::Local(folder.path().join("store"));
    keeps_its_promises(&Store::open(StoreConfig::default(), place.clone()).await.unwrap()).await;
    keeps_its_promises(&Store::open(StoreConfig::default(), place).await.unwrap()).await;
}

#[tokio::test]
async fn s3_keeps_what_a_store_promises() {
    let Some(s3) = servers::s3() else { return };
    let config = StoreConfig { s3, ..StoreConfig::default() };
    for prefix in ["", "a/prefix"] {
        let place = StorePlace::S3 { bucket: BUCKET.into(), prefix: prefix.into() };
        keeps_its_promises(&Store::open(config.clone(), place).await.unwrap()).await;
    }
}

#[tokio::test]
async fn a_store_that_ignores_create_only_puts_is_refused_until_accepted_and_then_keeps_its_promises() {
    let open = || Store::of_objects(Arc::new(Unconditional(InMemory::new())));
    let refused = open().probed(false).await.unwrap_err();
    assert!(matches!(refused, StoreError::Unconditional { .. }));
    assert!(refused.to_string().contains("store.accept_unconditional_put"), "{refused}");
    let accepted = open().probed(true).await.unwrap();
    keeps_its_promises(&accepted).await;
}

#[tokio::test]
async fn the_probe_leaves_nothing_behind() {
    let objects = Arc::new(InMemory::new());
    Store::of_objects(objects.clone()).probed(false).await.unwrap();
    assert_eq!(objects.list(None).count().await, 0);
}

/// Answers every request with `status` and `body`; returns the endpoint.
async fn server(status: &'static str, body: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    #[expect(clippy::disallowed_methods, reason = "the test's runtime ends it")]
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            assert!(stream.read(&mut request).await.unwrap() > 0, "a request");
            let bytes = body.len();
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {bytes}\r\nConnection: close\r\n\r\n{body}");
            stream.write_all(head.as_bytes()).await.unwrap();
        }
    });
    endpoint
}

async fn refusal(endpoint: &str) -> StoreError {
    let s3 = S3Config {
        endpoint: endpoint.into(),
        access_key_id: "someone".into(),
        secret_access_key: "sesame".into(),
        allow_http: true,
        ..S3Config::default()
    };
    let place = StorePlace::S3 { bucket: "guild".into(), prefix: String::new() };
    Store::open(StoreConfig { s3, ..StoreConfig::default() }, place).await.unwrap_err()
}

#[tokio::test]
async fn errors_of_s3_name_bucket_server_and_remedy_and_no_key() {
    let denied = server("403 Forbidden", "<Error><Code>InvalidAccessKeyId</Code></Error>").await;
    let absent = server("404 Not Found", "<Error><Code>NoSuchBucket</Code></Error>").await;
    // The port was free a moment ago: nobody listens.
    let closed = format!("http://{}", TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap());
    for (endpoint, remedy) in
        [(denied, "store.s3.secret_access_key"), (absent, "create the bucket"), (closed, "store.s3.endpoint")]
    {
        let error = refusal(&endpoint).await;
        let text = error.to_string();
        for part in ["guild", endpoint.as_str(), remedy] {
            assert!(text.contains(part), "{text} names {part}");
        }
        assert!(!with_causes(&error).contains("sesame") && !format!("{error:?}").contains("sesame"), "{error:?}");
    }
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let path: PathBuf = file.join("store");
    let error = Store::open(StoreConfig::default(), StorePlace::Local(path.clone())).await.unwrap_err();
    assert!(error.to_string().contains(&path.display().to_string()), "{error}");
}
