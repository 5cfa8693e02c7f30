//! What the API promises: every route documented and guarded, bad input refused by field, the whole loop over HTTP.

use std::collections::BTreeSet;
use std::path::Path as FilePath;

use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, StatusCode, header};
use futures::StreamExt as _;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tower::ServiceExt as _;
use zunft_protocol::episode::Manifest;
use zunft_protocol::ids::{ChunkId, Digest, EpisodeId};
use zunft_protocol::release::ReleaseManifest;
use zunft_skills::data::EpisodeSource as _;

use super::*;
use crate::config::HubConfig;
use crate::service::Service;
use crate::trainer::Run;
use crate::trainer::testing::{Memory, tiny_config};

/// A whole hub on loopback, and its router without the socket.
struct World {
    service: Service,
    router: Router,
    token: String,
    folder: TempDir,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = HubConfig { data_dir: folder.path().join("hub"), ..HubConfig::default() };
        config.quic.listen = "127.0.0.1:0".parse().unwrap();
        config.http.listen = "127.0.0.1:0".parse().unwrap();
        let service = Service::start(config).await.unwrap();
        let (hub, trainer) = (service.hub().clone(), service.trainer().clone());
        let token = hub.admin_token().to_owned();
        let router = router(hub, trainer, folder.path().join("uploads"), CancellationToken::new()).unwrap();
        Self { service, router, token, folder }
    }

    async fn send(&self, method: Method, path: &str, body: impl Into<Body>) -> (StatusCode, Vec<u8>) {
        let request = Request::builder().method(method).uri(path);
        let request = request.header(header::AUTHORIZATION, format!("Bearer {}", self.token));
        let answer = self.router.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap();
        let status = answer.status();
        (status, to_bytes(answer.into_body(), usize::MAX).await.unwrap().to_vec())
    }

    async fn json(&self, method: Method, path: &str, body: impl Into<Body>) -> (StatusCode, Value) {
        let (status, bytes) = self.send(method, path, body).await;
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    async fn get(&self, path: &str) -> Value {
        let (status, value) = self.json(Method::GET, path, Body::empty()).await;
        assert_eq!(status, StatusCode::OK, "{path}: {value}");
        value
    }

    async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.json(Method::POST, path, body.to_string()).await
    }

    /// Imports the tiny episodes as a client would.
    async fn import(&self) {
        let mut memory = Memory::new();
        for listed in memory.snapshot.episodes.clone() {
            let manifest = memory.manifest(listed.id).unwrap();
            let (_, answer) = self.json(Method::POST, "/v1/episodes", manifest.clone()).await;
            assert_eq!(answer["result"], "missing", "{answer}");
            for chunk in answer["chunks"].as_array().unwrap() {
                let id: ChunkId = chunk.as_str().unwrap().parse().unwrap();
                let (status, _) = self.send(Method::PUT, &format!("/v1/chunks/{id}"), memory.chunk(id).unwrap()).await;
                assert_eq!(status, StatusCode::NO_CONTENT);
            }
            for _again in 0..2 {
                let (_, answer) = self.json(Method::POST, "/v1/episodes", manifest.clone()).await;
                assert_eq!(answer, json!({"result": "durable", "episode": listed.id}));
            }
        }
    }

    /// Waits until a run has ended.
    async fn ended(&self, run: &Value) -> Value {
        let mut changes = self.service.hub().changes();
        loop {
            let run = self.get(&format!("/v1/runs/{}", run["id"])).await;
            if !run["ended_unix_ms"].is_null() {
                return run;
            }
            changes.recv().await.unwrap();
        }
    }

    /// Sends a package as a client would.
    async fn upload(&self, folder: &FilePath) -> (StatusCode, Value) {
        let manifest = std::fs::read(folder.join("manifest.json")).unwrap();
        let (status, answer) = self.json(Method::POST, "/v1/releases", manifest.clone()).await;
        if answer["result"] != "missing" {
            return (status, answer);
        }
        for file in ReleaseManifest::decode(&manifest).unwrap().files {
            let bytes = std::fs::read(folder.join(&file.name)).unwrap();
            let (status, answer) = self.json(Method::PUT, &format!("/v1/blobs/{}", file.digest), bytes).await;
            assert_eq!(status, StatusCode::NO_CONTENT, "{answer}");
        }
        self.json(Method::POST, "/v1/releases", manifest).await
    }
}

#[test]
fn document_and_router_have_the_same_operations() {
    let document = serde_json::to_value(openapi::Document::openapi()).unwrap();
    let mut documented = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            documented.insert((method.to_uppercase(), path.clone()));
            assert!(operation["summary"].is_string(), "{method} {path} is described");
            assert_eq!(
                operation["responses"]["401"]["content"]["application/json"]["schema"]["$ref"],
                "#/components/schemas/ApiError",
                "{method} {path} documents its errors"
            );
            for (name, _) in path.match_indices('{') {
                assert!(operation["parameters"].is_array(), "{method} {path} documents its parameter at {name}");
            }
        }
    }
    let routes = guarded_routes();
    let routed: BTreeSet<(String, String)> =
        routes.table().iter().map(|(method, path)| (method.to_string(), (*path).to_owned())).collect();
    assert_eq!(documented, routed);
    assert!(document["components"]["schemas"]["ErrorCode"].is_object());
}

#[tokio::test]
async fn nothing_but_the_page_and_the_document_opens_without_the_token() {
    let world = World::new().await;
    let open = open_routes();
    let guarded = guarded_routes();
    let ask = async |method: &Method, path: &str, token: Option<&str>| {
        let path = path.replace(['{', '}'], "");
        let mut request = Request::builder().method(method).uri(path);
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        world.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    };
    for (method, path) in guarded.table() {
        for token in [None, Some("wrong")] {
            let answer = ask(method, path, token).await;
            assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{method} {path}");
            let body = to_bytes(answer.into_body(), 4096).await.unwrap();
            let error: ApiError = serde_json::from_slice(&body).unwrap();
            assert!(error.message.contains("pki/admin.token"), "{error}");
        }
    }
    for (method, path) in open.table() {
        assert_eq!(ask(method, path, None).await.status(), StatusCode::OK, "{method} {path}");
    }
    world.service.shutdown().await;
}

#[tokio::test]
async fn bad_input_is_refused_by_name_and_changes_nothing() {
    let world = World::new().await;
    let zeros = "0".repeat(64);
    let refused = async |method: Method, path: &str, body: Vec<u8>, code: &str, field: Option<&str>| {
        let (status, error) = world.json(method, path, body).await;
        assert!(status.is_client_error(), "{path}: {status} {error}");
        assert_eq!((error["code"].as_str(), error["field"].as_str()), (Some(code), field), "{path}: {error}");
        assert!(error["message"].as_str().unwrap().len() > 10);
    };
    let (get, post, put) = (Method::GET, Method::POST, Method::PUT);
    let run = |change: Value| {
        let mut run = json!({"skill": "push", "query": {}});
        run.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        run.to_string().into_bytes()
    };
    refused(get.clone(), "/v1/nowhere", vec![], "not-found", None).await;
    refused(put.clone(), "/v1/status", vec![], "method-not-allowed", None).await;
    refused(get.clone(), "/v1/robots/UPPER", vec![], "bad-request", Some("path")).await;
    refused(get.clone(), "/v1/robots?limit=0", vec![], "bad-request", Some("limit")).await;
    refused(get.clone(), "/v1/runs?cursor=x", vec![], "bad-request", Some("cursor")).await;
    refused(get.clone(), "/v1/episodes?tusk=push", vec![], "bad-request", Some("query")).await;
    refused(get.clone(), &format!("/v1/episodes/{zeros}"), vec![], "not-found", None).await;
    refused(post.clone(), "/v1/robots", b"{".to_vec(), "bad-request", None).await;
    let address = br#"{"robot":"r","site":"s","hub":"a\"b:1"}"#.to_vec();
    refused(post.clone(), "/v1/robots", address, "unprocessable", Some("hub")).await;
    refused(post.clone(), "/v1/snapshots", br#"{"query":{"tasks":["fold"]}}"#.to_vec(), "unprocessable", Some("query"))
        .await;
    refused(post.clone(), "/v1/runs", run(json!({"config": {"stops": 1}})), "bad-request", Some("config.stops")).await;
    refused(post.clone(), "/v1/runs", run(json!({"config": {"batch_size": 0}})), "unprocessable", Some("config")).await;
    refused(post.clone(), "/v1/runs", run(json!({"snapshot": zeros})), "bad-request", Some("snapshot")).await;
    refused(post.clone(), "/v1/runs", run(json!({"assign": ["ghost"]})), "unprocessable", Some("assign")).await;
    refused(post.clone(), "/v1/runs/7/stop", vec![], "not-found", None).await;
    refused(put.clone(), &format!("/v1/chunks/{zeros}"), b"x".to_vec(), "unprocessable", Some("chunk")).await;
    refused(put.clone(), &format!("/v1/chunks/{zeros}"), vec![0; 2 << 20], "too-large", None).await;
    refused(put.clone(), &format!("/v1/blobs/{zeros}"), b"x".to_vec(), "unprocessable", Some("digest")).await;
    refused(post.clone(), "/v1/episodes", b"not cbor".to_vec(), "unprocessable", Some("manifest")).await;
    refused(post.clone(), "/v1/releases", b"{}".to_vec(), "unprocessable", Some("manifest")).await;
    let policy = |text: &str| text.as_bytes().to_vec();
    let (all, ghost) = ("/v1/upload-policy", "/v1/robots/ghost/upload-policy");
    refused(put.clone(), all, policy(r#"{"meterd":true}"#), "bad-request", Some("meterd")).await;
    refused(put.clone(), all, policy(r#"{"windows":[{"from":"7","to":"8:00"}]}"#), "bad-request", Some("windows[0]"))
        .await;
    refused(put.clone(), all, policy(r#"{"bytes_per_second_max":9}"#), "unprocessable", Some("bytes_per_second_max"))
        .await;
    for method in [get.clone(), put.clone(), Method::DELETE] {
        refused(method, ghost, policy("{}"), "not-found", None).await;
    }
    assert_eq!(world.get(all).await["revision"], 0);
    let (noted, request) = ("/v1/noted-episodes", "/v1/noted-episodes/request");
    refused(get.clone(), "/v1/noted-episodes?cursor=x", vec![], "bad-request", Some("cursor")).await;
    let body = json!({"episodes": [zeros]}).to_string().into_bytes();
    refused(post.clone(), request, body, "not-found", Some("episodes")).await;
    assert_eq!(world.get(noted).await["items"], json!([]));
    let assignment = br#"{"release":"push@1","robots":"all"}"#.to_vec();
    refused(post.clone(), "/v1/assignments", assignment, "not-found", Some("release")).await;
    assert_eq!(world.get("/v1/status").await["episodes"], 0);
    assert_eq!(world.get("/v1/runs").await["items"], json!([]));
    assert_eq!(world.get("/v1/snapshots").await["items"], json!([]));
    world.service.shutdown().await;
}

#[tokio::test]
async fn added_robot_gets_everything_it_needs_and_is_listed() {
    let world = World::new().await;
    for robot in ["r1", "r2", "r3"] {
        let request = json!({"robot": robot, "site": "bonn", "hub": "hub.example.org:4433"});
        let (status, files) = world.post("/v1/robots", request).await;
        assert_eq!(status, StatusCode::CREATED);
        let config: toml::Table = toml::from_str(files["agent_toml"].as_str().unwrap()).unwrap();
        assert_eq!(config["hub"]["address"].as_str(), Some("hub.example.org:4433"));
        assert!(files["certificate_pem"].as_str().unwrap().starts_with("-----BEGIN CERTIFICATE"));
        assert!(files["key_pem"].as_str().unwrap().contains("PRIVATE KEY"));
        let root: Value = serde_json::from_str(files["root_dsse_json"].as_str().unwrap()).unwrap();
        assert!(root["payload"].is_string());
    }
    let first = world.get("/v1/robots?limit=2").await;
    assert_eq!(first["items"][1]["robot"], "r2");
    let cursor = first["next_cursor"].as_str().unwrap();
    let second = world.get(&format!("/v1/robots?limit=2&cursor={cursor}")).await;
    assert_eq!((&second["items"][0]["robot"], &second["next_cursor"]), (&json!("r3"), &Value::Null));
    let (status, error) = world.post("/v1/robots", json!({"robot": "r1", "site": "ulm"})).await;
    assert_eq!((status, &error["field"]), (StatusCode::CONFLICT, &json!("site")));
    let fleet: Fleet = serde_json::from_value(world.get("/v1/fleet").await).unwrap();
    assert_eq!((fleet.total, fleet.connected, fleet.robots.len()), (3, 0, 3));
    world.service.shutdown().await;
}

#[tokio::test]
async fn an_upload_policy_is_set_shown_and_cleared_for_all_robots_and_for_one() {
    let world = World::new().await;
    for robot in ["r1", "r2"] {
        world.post("/v1/robots", json!({"robot": robot, "site": "bonn", "hub": "hub.example.org:4433"})).await;
    }
    let nothing = json!({"robot": null, "revision": 0, "policy": null, "updated_unix_ms": null});
    assert_eq!(world.get("/v1/upload-policy").await, nothing);
    let policy = json!({
        "mode": "metadata-first", "bytes_per_second_max": 5000, "metered": true, "windows": [{"from": "22:00", "to": "06:00"}],
        "keep_on_site_tasks": ["weld"]
    });
    let put = async |path: &str, policy: &Value| {
        let (status, answer) = world.json(Method::PUT, path, policy.to_string()).await;
        assert_eq!((status, &answer["policy"]), (StatusCode::OK, policy), "{answer}");
        assert_eq!(world.get(path).await, answer);
        answer["revision"].as_u64().unwrap()
    };
    let in_force = async |robot: &str| {
        let policy = world.get(&format!("/v1/robots/{robot}")).await["upload_policy"].clone();
        assert_eq!(policy["applied_revision"], Value::Null, "it never said anything");
        (policy["source"].as_str().unwrap().to_owned(), policy["revision"].as_u64().unwrap())
    };
    let all = put("/v1/upload-policy", &policy).await;
    let open = json!({"mode": "all", "metered": false, "windows": [], "keep_on_site_tasks": []});
    let one = put("/v1/robots/r1/upload-policy", &open).await;
    assert!(one > all);
    assert_eq!((in_force("r1").await, in_force("r2").await), (("robot".into(), one), ("tenant".into(), all)));
    let (_, cleared) = world.json(Method::DELETE, "/v1/robots/r1/upload-policy", Body::empty()).await;
    assert_eq!((&cleared["robot"], &cleared["policy"]), (&json!("r1"), &Value::Null));
    assert_eq!(in_force("r1").await, ("tenant".into(), cleared["revision"].as_u64().unwrap()));
    let (_, cleared) = world.json(Method::DELETE, "/v1/upload-policy", Body::empty()).await;
    assert_eq!(in_force("r2").await, ("config".into(), cleared["revision"].as_u64().unwrap()));
    world.service.shutdown().await;
}

#[tokio::test]
async fn imported_episodes_become_an_assigned_release() {
    let world = World::new().await;
    world.import().await;
    let page = world.get("/v1/episodes?task=halve&outcome=success&actor=script&limit=3").await;
    assert_eq!(page["items"].as_array().unwrap().len(), 3);
    let rest = world.get(&format!("/v1/episodes?cursor={}", page["next_cursor"].as_str().unwrap())).await;
    assert_eq!(rest["items"].as_array().unwrap().len(), 1);
    let summary = world.get("/v1/episodes/summary").await;
    assert_eq!(summary["tasks"]["halve"], json!({"episodes": 4, "success": 4, "failure": 0, "unknown": 0}));
    let id: EpisodeId = rest["items"][0]["id"].as_str().unwrap().parse().unwrap();
    assert_eq!(world.get(&format!("/v1/episodes/{id}")).await["manifest"]["steps"], 20);
    let (_, manifest) = world.send(Method::GET, &format!("/v1/episodes/{id}/manifest"), Body::empty()).await;
    assert_eq!(EpisodeId::of(&manifest), id);
    let chunk = Manifest::decode(&manifest).unwrap().streams[0].chunks[0].id;
    let (_, bytes) = world.send(Method::GET, &format!("/v1/chunks/{chunk}"), Body::empty()).await;
    assert_eq!(ChunkId::of(&bytes), chunk);
    let (status, _) = world.json(Method::GET, &format!("/v1/chunks/{}", "0".repeat(64)), Body::empty()).await;
    assert_eq!(status, StatusCode::NOT_FOUND);

    let (status, snapshot) = world.post("/v1/snapshots", json!({"query": {"tasks": ["halve"]}})).await;
    assert_eq!((status, &snapshot["episodes"]), (StatusCode::CREATED, &json!(4)));
    let path = format!("/v1/snapshots/{}/list", snapshot["id"].as_str().unwrap());
    let (_, list) = world.send(Method::GET, &path, Body::empty()).await;
    assert_eq!(Digest::of(&list).to_string(), snapshot["id"].as_str().unwrap());

    let request = json!({"skill": "halve", "snapshot": snapshot["id"], "config": tiny_config(30), "assign": "all"});
    let (status, run) = world.post("/v1/runs", request).await;
    assert_eq!(status, StatusCode::CREATED, "{run}");
    let run = world.ended(&run).await;
    assert_eq!((&run["state"], &run["release"]), (&json!("succeeded"), &json!("halve@1")), "{run}");
    assert_eq!(serde_json::from_value::<Run>(run).unwrap().plan.config, tiny_config(30));
    let (_, metrics) = world.send(Method::GET, "/v1/runs/1/metrics?after_step=20", Body::empty()).await;
    assert_eq!(metrics.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).count(), 2);

    let release = world.get("/v1/releases/halve@1").await;
    assert_eq!(release["manifest"]["lineage"]["snapshot"], snapshot["id"]);
    assert_eq!(world.get("/v1/skills").await["items"][0]["newest"], "halve@1");
    assert_eq!(world.get("/v1/skills/halve/releases").await["items"][0]["tasks"], json!(["halve"]));
    assert_eq!(world.get("/v1/assignments").await["items"][0]["releases"], json!(["halve@1"]));
    world.service.shutdown().await;
}

#[tokio::test]
async fn uploaded_package_is_published_whole_or_not_at_all() {
    let world = World::new().await;
    world.import().await;
    let request = json!({"skill": "halve", "query": {}, "config": tiny_config(10), "publish": true});
    let (_, run) = world.post("/v1/runs", request).await;
    world.ended(&run).await;
    let trained = world.folder.path().join("hub/runs/default/1/package-1");

    // The same package again is the same release.
    let (status, answer) = world.upload(&trained).await;
    assert_eq!((status, &answer["release"]), (StatusCode::OK, &json!("halve@1")), "{answer}");
    // Another package of the same name is refused, and one of the next version is published.
    let copy = world.folder.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    for entry in std::fs::read_dir(&trained).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
    }
    let rename = |version: u32| {
        let text = std::fs::read_to_string(trained.join("manifest.json")).unwrap();
        let mut manifest = ReleaseManifest::decode(text.as_bytes()).unwrap();
        manifest.release = format!("halve@{version}").parse().unwrap();
        manifest.licence = "MIT".into();
        std::fs::write(copy.join("manifest.json"), manifest.encode()).unwrap();
    };
    rename(1);
    assert_eq!(world.upload(&copy).await.0, StatusCode::CONFLICT);
    rename(2);
    let (status, answer) = world.upload(&copy).await;
    assert_eq!((status, &answer["result"]), (StatusCode::OK, &json!("published")), "{answer}");
    let answer = serde_json::from_value(answer).unwrap();
    assert!(matches!(answer, PublishAnswer::Published { release } if release.release.version.0 == 2));
    // A tensor that is no number is refused although its digest is right.
    let model = copy.join("model.safetensors");
    let mut bytes = std::fs::read(&model).unwrap();
    let len = bytes.len();
    bytes[len - 2..].copy_from_slice(&[0xc0, 0x7f]);
    std::fs::write(&model, &bytes).unwrap();
    rename(3);
    let mut manifest = ReleaseManifest::decode(&std::fs::read(copy.join("manifest.json")).unwrap()).unwrap();
    for file in manifest.files.iter_mut().filter(|file| file.name == "model.safetensors") {
        file.digest = Digest::of(&bytes);
    }
    std::fs::write(copy.join("manifest.json"), manifest.encode()).unwrap();
    let (status, answer) = world.upload(&copy).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
    assert_eq!(world.get("/v1/skills/halve/releases").await["items"].as_array().unwrap().len(), 2);
    world.service.shutdown().await;
}

#[tokio::test]
async fn published_files_come_back_as_they_were() {
    let world = World::new().await;
    world.import().await;
    let request = json!({"skill": "halve", "query": {}, "config": tiny_config(10), "publish": true});
    let (_, run) = world.post("/v1/runs", request).await;
    world.ended(&run).await;
    let trained = world.folder.path().join("hub/runs/default/1/package-1");
    let release = world.get("/v1/releases/halve@1").await;
    for file in release["manifest"]["files"].as_array().unwrap() {
        let path = format!("/v1/blobs/{}", file["digest"].as_str().unwrap());
        let (status, bytes) = world.send(Method::GET, &path, Body::empty()).await;
        assert_eq!(status, StatusCode::OK, "{path}");
        assert_eq!(bytes, std::fs::read(trained.join(file["name"].as_str().unwrap())).unwrap());
    }
    let envelope = format!("/v1/blobs/{}", release["envelope"].as_str().unwrap());
    let (_, bytes) = world.send(Method::GET, &envelope, Body::empty()).await;
    assert_eq!(Digest::of(&bytes).to_string(), release["envelope"].as_str().unwrap());
    let unknown = format!("/v1/blobs/{}", Digest::of(b"no release has this"));
    assert_eq!(world.send(Method::GET, &unknown, Body::empty()).await.0, StatusCode::NOT_FOUND);
    world.service.shutdown().await;
}

#[tokio::test]
async fn only_what_a_trusted_publisher_signed_verifies() {
    let world = World::new().await;
    let keys = world.service.hub().pki().tenant(&default_tenant()).unwrap();
    let manifest = json!({"tenant": "default", "release": "halve@1", "policy": "mlp", "dtype": "bf16",
        "embodiment": {"name": "toy", "rate_hz": 10.0, "features": [{"name": "action", "dtype": "f32", "shape": [1]}]},
        "tasks": ["halve"], "files": [{"name": "config.json", "bytes": 1, "digest": Digest::of(b"x")}],
        "lineage": {"snapshot": null, "config": {}, "seed": 0, "code_version": "0", "metrics": {}, "train_secs": 0.0},
        "licence": "MIT"})
    .to_string();
    let sign = |key| {
        zunft_protocol::dsse::Envelope::sign(zunft_protocol::release::RELEASE_TYPE, manifest.as_bytes(), &[key])
            .to_json()
    };
    let (_, verdict) = world.json(Method::POST, "/v1/verify", sign(&keys.publisher)).await;
    assert_eq!((&verdict["trusted"], &verdict["published"]), (&json!(true), &json!(false)), "{verdict}");
    let (_, verdict) = world.json(Method::POST, "/v1/verify", sign(&keys.assigner)).await;
    assert_eq!((&verdict["trusted"], &verdict["release"]), (&json!(false), &json!("halve@1")), "{verdict}");
    let (_, verdict) = world.json(Method::POST, "/v1/verify", "{}").await;
    assert!(verdict["reason"].is_string() && verdict["release"].is_null());
    world.service.shutdown().await;
}

#[tokio::test]
async fn changes_are_streamed_as_they_happen() {
    let world = World::new().await;
    let request = Request::builder().uri("/v1/events").header(header::AUTHORIZATION, format!("Bearer {}", world.token));
    let answer = world.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let mut events = answer.into_body().into_data_stream();
    let (status, _) = world.post("/v1/robots", json!({"robot": "r1", "site": "bonn"})).await;
    assert_eq!(status, StatusCode::CREATED);
    let event = String::from_utf8(events.next().await.unwrap().unwrap().to_vec()).unwrap();
    assert!(event.contains("event: change") && event.contains("\"r1\""), "{event}");
    drop(events);
    world.service.shutdown().await;
}

#[tokio::test]
async fn service_answers_on_its_port_and_names_a_port_in_use() {
    let world = World::new().await;
    let address = world.service.http_addr();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /v1/openapi.json HTTP/1.1\r\nhost: hub\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("\"openapi\""));

    let mut config = HubConfig { data_dir: world.folder.path().join("second"), ..HubConfig::default() };
    config.quic.listen = "127.0.0.1:0".parse().unwrap();
    config.http.listen = address;
    let error = Service::start(config.clone()).await.err().unwrap().to_string();
    assert!(error.contains(&address.to_string()) && error.contains("http.listen"), "{error}");
    world.service.shutdown().await;
    // The refused start gave its data directory back.
    config.http.listen = "127.0.0.1:0".parse().unwrap();
    Service::start(config).await.unwrap().shutdown().await;
}
