//! Whole agents against a small hub over real QUIC on loopback: the hub's session is the real one, its store a map.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::runtime::Runtime;
use zunft_client::{Begin, BeginActor, Event, Robot, Step};
use zunft_protocol::embodiment::{ACTION, Embodiment, Feature, OBSERVATION_STATE};
use zunft_protocol::hello::{ALPN, HELLO_BYTES, Hello};
use zunft_protocol::message::{CloseCode, Found, HEADER_BYTES, Header, Message, Receipt, SignedObject};
use zunft_protocol::session::UploadReply;
use zunft_protocol::session::hub::{HubEvent, HubOrder, HubSession, Identity, Known, UploadId};
use zunft_protocol::upload_policy::{HubPolicy, PushedPolicy, UploadMode, Window};
use zunft_protocol::{EpisodeEnd, Manifest, Outcome};

use super::*;
use crate::config::Config;
use crate::releases::made::{Made, embodiment};
use crate::{Agent, Handle};

/// A certificate authority of a hub.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    certificate: rustls::pki_types::CertificateDer<'static>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let (pem, der) = (certificate.pem(), certificate.der().clone());
        Self { issuer: Issuer::new(params, key), pem, certificate: der }
    }

    fn issue(&self, name: SanType) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names.push(name);
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// Writes what `zunft robot add` would.
    fn enrol(&self, folder: &Path) {
        let uri = "spiffe://zunft/tenant/acme/site/hall/robot/r1".try_into().unwrap();
        let (certificate, key) = self.issue(SanType::URI(uri));
        std::fs::write(folder.join("robot.pem"), certificate.pem()).unwrap();
        std::fs::write(folder.join("robot-key.pem"), key.serialize_pem()).unwrap();
    }
}

/// What the hub holds.
#[derive(Default)]
struct Held {
    /// Manifests by recording, and how often each was stored.
    episodes: Vec<Manifest>,
    chunks: BTreeSet<zunft_protocol::ChunkId>,
    reports: Vec<Report>,
    /// What the robot told that it gave up.
    evicted: BTreeSet<u64>,
    offers: u64,
    /// What was described.
    noted: BTreeSet<EpisodeId>,
}

struct TestHub {
    endpoint: Endpoint,
    address: SocketAddr,
    held: Arc<Mutex<Held>>,
    made: Arc<Mutex<Made>>,
    assign: watch::Sender<Option<Vec<u8>>>,
    policy: watch::Sender<PushedPolicy>,
    wanted: watch::Sender<Vec<EpisodeId>>,
}

impl TestHub {
    /// Listens at `address`, or anywhere.
    fn start(authority: &Authority, made: Made, address: Option<SocketAddr>, policy: PushedPolicy) -> Self {
        let (certificate, key) = authority.issue(SanType::DnsName("zunft-hub".try_into().unwrap()));
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap();
        let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        let address = address.unwrap_or_else(|| ([127, 0, 0, 1], 0).into());
        let endpoint = Endpoint::server(config, address).unwrap();
        let address = endpoint.local_addr().unwrap();
        let (held, made) = (Arc::default(), Arc::new(Mutex::new(made)));
        let (assign, policy) = (watch::Sender::new(None), watch::Sender::new(policy));
        let hub = Self { endpoint, address, held, made, assign, policy, wanted: watch::Sender::default() };
        let serving = Serving {
            held: Arc::clone(&hub.held),
            made: Arc::clone(&hub.made),
            assign: hub.assign.subscribe(),
            policy: hub.policy.subscribe(),
            wanted: hub.wanted.subscribe(),
        };
        let endpoint = hub.endpoint.clone();
        spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let serving = serving.clone();
                spawn(async move {
                    if let Ok(connection) = incoming.await {
                        serving.serve(connection).await;
                    }
                });
            }
        });
        hub
    }
}

#[derive(Clone)]
struct Serving {
    held: Arc<Mutex<Held>>,
    made: Arc<Mutex<Made>>,
    assign: watch::Receiver<Option<Vec<u8>>>,
    policy: watch::Receiver<PushedPolicy>,
    wanted: watch::Receiver<Vec<EpisodeId>>,
}

impl Serving {
    async fn serve(mut self, connection: quinn::Connection) {
        let Ok((mut send, mut receive)) = connection.accept_bi().await else { return };
        let mut hello = [0; HELLO_BYTES];
        receive.read_exact(&mut hello).await.unwrap();
        send.write_all(&Hello::decode(hello).unwrap().choose().unwrap().encode()).await.unwrap();
        let allowed = self.policy.borrow_and_update().clone();
        send.write_all(&Message::UploadPolicy(allowed).encode()).await.unwrap();
        let held = Arc::clone(&self.held);
        let (answers, mut to_say) = mpsc::channel(1);
        spawn(async move {
            while let Some(message) = read(&mut receive).await {
                if let Message::Report(report) = message {
                    held.lock().unwrap().reports.push(report);
                } else if let Message::Evicted(tombstones) = message {
                    let ordinals: Vec<u64> = tombstones.iter().map(|tombstone| tombstone.ordinal).collect();
                    held.lock().unwrap().evicted.extend(&ordinals);
                    // The robot may be gone.
                    drop(answers.send(Message::EvictionsStored(ordinals)).await);
                }
            }
        });
        let streams = (self.clone(), connection);
        spawn(async move {
            let (serving, connection) = streams;
            while let Ok((send, receive)) = connection.accept_bi().await {
                spawn(serving.clone().stream(send, receive));
            }
        });
        self.assign.mark_changed();
        loop {
            let message = tokio::select! {
                changed = self.assign.changed() => match changed {
                    Ok(()) => self.assign.borrow().clone().map(|envelope| Message::Assign(SignedObject { envelope })),
                    Err(_) => return,
                },
                Ok(()) = self.policy.changed() => {
                    Some(Message::UploadPolicy(self.policy.borrow_and_update().clone()))
                }
                Ok(()) = self.wanted.changed() => Some(Message::Wanted(self.wanted.borrow_and_update().clone())),
                Some(answer) = to_say.recv() => Some(answer),
            };
            if let Some(message) = message {
                drop(send.write_all(&message.encode()).await);
            }
        }
    }

    async fn stream(self, mut send: quinn::SendStream, mut receive: quinn::RecvStream) {
        let (tenant, site, robot) = ("acme".parse().unwrap(), "hall".parse().unwrap(), "r1".parse().unwrap());
        let mut session = HubSession::new(Identity { tenant, site, robot }, 1 << 30);
        let upload = UploadId(0);
        while let Some(message) = read(&mut receive).await {
            let event = if let Message::Fetch(fetch) = message {
                let blob = self.made.lock().unwrap().blobs.get(&fetch.digest).cloned();
                let blob = blob.expect("a robot fetches what is assigned to it");
                let found = Found { bytes_total: blob.len() as u64 };
                send.write_all(&Message::Found(found).encode()).await.unwrap();
                send.write_all(&blob[fetch.offset as usize..]).await.unwrap();
                return;
            } else if let Message::Offer(manifest) = message {
                self.held.lock().unwrap().offers += 1;
                HubEvent::Offered { upload, manifest }
            } else if let Message::Describe(manifest) = message {
                HubEvent::Described { upload, manifest }
            } else if let Message::Chunk(chunk) = message {
                HubEvent::Received { upload, chunk }
            } else {
                panic!("a robot does not say {message:?} here");
            };
            let mut orders = session.handle(event);
            while !orders.is_empty() {
                orders = self.carry_out(orders, &mut session, &mut send).await;
            }
        }
    }

    async fn carry_out(
        &self,
        orders: Vec<HubOrder>,
        session: &mut HubSession,
        send: &mut quinn::SendStream,
    ) -> Vec<HubOrder> {
        let mut more = Vec::new();
        for order in orders {
            match order {
                HubOrder::LookUp { upload, manifest, .. } => {
                    let held = self.held.lock().unwrap();
                    let present =
                        manifest.chunks().map(|chunk| chunk.id).filter(|id| held.chunks.contains(id)).collect();
                    let known = match held.episodes.iter().find(|held| held.recording == manifest.recording) {
                        Some(stored) => Known::Durable(self.receipt(stored)),
                        None => Known::New { present },
                    };
                    more.extend(session.handle(HubEvent::LookedUp { upload, known }));
                }
                HubOrder::Note { upload, episode } => {
                    self.held.lock().unwrap().noted.insert(episode);
                    more.extend(session.handle(HubEvent::Noted { upload }));
                }
                HubOrder::SetDown { chunks, .. } => {
                    self.held.lock().unwrap().chunks.extend(chunks.iter().map(|chunk| chunk.id));
                }
                HubOrder::Commit { upload, manifest, chunks, .. } => {
                    let manifest = Manifest::decode(&manifest).unwrap();
                    let receipt = self.receipt(&manifest);
                    let mut held = self.held.lock().unwrap();
                    held.chunks.extend(chunks.iter().map(|chunk| chunk.id));
                    held.episodes.push(manifest);
                    drop(held);
                    more.extend(session.handle(HubEvent::Stored { upload, receipt }));
                }
                HubOrder::Reply { reply, .. } => {
                    let message = match reply {
                        UploadReply::Want(want) => Message::Want(want),
                        UploadReply::Later(later) => Message::Later(later),
                        UploadReply::Reject(reject) => Message::Reject(reject),
                        UploadReply::Durable(receipt) => Message::Durable(receipt),
                        UploadReply::Noted => Message::Noted,
                    };
                    // The robot may be gone.
                    drop(send.write_all(&message.encode()).await);
                }
            }
        }
        more
    }

    fn receipt(&self, manifest: &Manifest) -> Receipt {
        Receipt::sign(&"acme".parse().unwrap(), manifest.id(), 5, &self.made.lock().unwrap().assigner)
    }
}

#[expect(clippy::disallowed_methods, reason = "the test's runtime ends with the test, and all tasks with it")]
fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

async fn read(receive: &mut quinn::RecvStream) -> Option<Message> {
    let mut header = [0; HEADER_BYTES];
    receive.read_exact(&mut header).await.ok()?;
    let header = Header::decode(header).unwrap();
    let mut body = vec![0; header.body_bytes];
    receive.read_exact(&mut body).await.ok()?;
    Some(header.decode_body(body).unwrap())
}

struct World {
    folder: tempfile::TempDir,
    runtime: Runtime,
    authority: Authority,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let authority = Authority::new();
        authority.enrol(folder.path());
        std::fs::write(folder.path().join("ca.pem"), &authority.pem).unwrap();
        std::fs::write(folder.path().join("root.json"), Made::new().root(1)).unwrap();
        Self { folder, runtime, authority }
    }

    fn hub(&self, made: Made, address: Option<SocketAddr>) -> TestHub {
        let _entered = self.runtime.enter();
        TestHub::start(&self.authority, made, address, PushedPolicy::default())
    }

    /// A hub whose operator allows what `policy` says.
    fn hub_that_allows(&self, policy: PushedPolicy) -> TestHub {
        let _entered = self.runtime.enter();
        TestHub::start(&self.authority, Made::new(), None, policy)
    }

    fn agent(&self, address: SocketAddr) -> Handle {
        self.agent_that(address, |_| {})
    }

    fn agent_that(&self, address: SocketAddr, is_configured: impl FnOnce(&mut Config)) -> Handle {
        let mut config = Config::default();
        let path = |name: &str| self.folder.path().join(name);
        (config.data_dir, config.socket, config.root) = (path("data"), path("agent.sock"), Some(path("root.json")));
        config.hub.address = Some(address.to_string());
        config.hub.ca = Some(path("ca.pem"));
        config.hub.certificate = Some(path("robot.pem"));
        config.hub.key = Some(path("robot-key.pem"));
        config.spool.free_bytes_min = 0;
        config.upload.reconnect_secs_max = 1;
        is_configured(&mut config);
        Agent::start(&config).unwrap()
    }

    fn program(&self) -> Robot {
        Robot::connect(self.folder.path().join("agent.sock")).unwrap()
    }
}

fn record(robot: &mut Robot, steps: u64) -> EpisodeId {
    record_task(robot, "push", steps)
}

fn record_task(robot: &mut Robot, task: &str, steps: u64) -> EpisodeId {
    record_outcome(robot, task, steps, Outcome::Success)
}

fn record_outcome(robot: &mut Robot, task: &str, steps: u64, outcome: Outcome) -> EpisodeId {
    let actor = BeginActor::Script;
    robot.begin(&Begin { task: task.parse().unwrap(), embodiment: embodiment(), actor }).unwrap();
    for time in 1..=steps {
        let (state, action) = ([time as f32, 0.5], [1.0_f32]);
        let values = &[(&state).into(), (&action).into()];
        robot.step(&Step { monotonic_ns: time, reward: None, intervention: false, values }).unwrap();
    }
    robot.end(outcome, EpisodeEnd::Terminated).unwrap().episode
}

/// Waits until the agent says so.
fn wait_for(agent: &Handle, what: &str, met: impl Fn(&crate::status::Status) -> bool) {
    let deadline = now() + Duration::from_secs(60);
    while !met(&agent.status()) {
        assert!(now() < deadline, "{what} did not happen: {:?}", agent.status());
        // A status is asked for, not announced: this is a poll, not a guess at how long something takes.
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn episodes_become_durable_and_are_freed_and_a_hub_that_was_away_gets_what_it_missed() {
    let world = World::new();
    let hub = world.hub(Made::new(), None);
    let agent = world.agent(hub.address);
    let mut robot = world.program();
    // More than one chunk.
    let first = record(&mut robot, 30_000);
    wait_for(&agent, "the receipt", |status| status.hub.episodes_durable == 1 && status.spool.episodes_waiting == 0);
    assert_eq!(hub.held.lock().unwrap().episodes[0].id(), first);
    assert!(hub.held.lock().unwrap().chunks.len() > 1);
    let address = hub.address;
    hub.endpoint.close((CloseCode::Stopping as u32).into(), b"");
    world.runtime.block_on(hub.endpoint.wait_idle());
    drop(hub);
    wait_for(&agent, "the loss", |status| status.hub.state == HubState::Connecting);
    let second = record(&mut robot, 10);
    assert_eq!(agent.status().spool.episodes_waiting, 1, "recording goes on without a hub");
    // The old endpoint lets go of its port when its last task ends.
    let hub = world.hub_again(address);
    wait_for(&agent, "the second receipt", |status| status.spool.episodes_waiting == 0);
    let held: Vec<_> = hub.held.lock().unwrap().episodes.iter().map(Manifest::id).collect();
    assert_eq!(held, [second]);
    let report = hub.held.lock().unwrap().reports[0].clone();
    assert_eq!((report.recordings, report.embodiment), (2, Some(embodiment().id())));
    agent.stop();
}

impl World {
    /// A hub at an address that another one has just left.
    fn hub_again(&self, address: SocketAddr) -> TestHub {
        let deadline = now() + Duration::from_secs(30);
        while UdpSocket::bind(address).is_err() {
            assert!(now() < deadline, "the port stays taken");
            std::thread::sleep(Duration::from_millis(5));
        }
        self.hub(Made::new(), Some(address))
    }
}

#[test]
fn what_a_full_spool_gave_up_is_told_to_the_hub_and_the_rest_is_uploaded() {
    const SEGMENT_BYTES: u64 = 10_000_000;
    const VALUES: u32 = 65_536;
    let world = World::new();
    let address = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let agent = world.agent_that(address, |config| {
        (config.spool.segment_bytes, config.spool.bytes_max) = (SEGMENT_BYTES, 4 * SEGMENT_BYTES);
    });
    let mut robot = world.program();
    let embodiment = Embodiment {
        name: "wide".into(),
        rate_hz: 20.0,
        features: vec![Feature::vector(OBSERVATION_STATE, VALUES), Feature::vector(ACTION, 1)],
    };
    let (state, action) = (vec![0.5_f32; VALUES as usize], [1.0_f32]);
    for _ in 0..6 {
        let (task, actor) = ("push".parse().unwrap(), BeginActor::Script);
        robot.begin(&Begin { task, embodiment: embodiment.clone(), actor }).unwrap();
        // More than a segment.
        for time in 1..=50 {
            let values = &[(&state).into(), (&action).into()];
            robot.step(&Step { monotonic_ns: time, reward: None, intervention: false, values }).unwrap();
        }
        robot.end(Outcome::Success, EpisodeEnd::Terminated).unwrap();
    }
    let spool = agent.status().spool;
    assert!(spool.episodes_evicted >= 3 && spool.evictions_untold == spool.episodes_evicted, "{spool:?}");
    assert_eq!(spool.episodes_waiting + spool.episodes_evicted, 6);
    let hub = world.hub_again(address);
    wait_for(&agent, "the answer", |status| status.spool.evictions_untold == 0 && status.spool.episodes_waiting == 0);
    let held = hub.held.lock().unwrap();
    let uploaded: BTreeSet<u64> = held.episodes.iter().map(|manifest| manifest.ordinal).collect();
    assert!(held.evicted.is_disjoint(&uploaded));
    assert!(held.evicted.union(&uploaded).copied().eq(0..6), "no gap is without a reason");
    drop(held);
    agent.stop();
}

#[test]
fn episodes_that_cannot_be_read_back_hold_up_no_other() {
    const VALUES: u32 = 65_536;
    let world = World::new();
    let address = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let agent = world.agent(address);
    let mut robot = world.program();
    let features = vec![Feature::vector(OBSERVATION_STATE, VALUES), Feature::vector(ACTION, 1)];
    let embodiment = Embodiment { name: "wide".into(), rate_hz: 20.0, features };
    // What does not compress.
    let mut noise = 1_u32;
    let mut next = || {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        noise as f32
    };
    let action = [1.0_f32];
    // Two fill what a fresh connection has under way, and go first.
    let recorded = [("spoilt", Outcome::Failure), ("spoilt", Outcome::Failure), ("sound", Outcome::Unknown)];
    let recorded = recorded.map(|(task, outcome)| {
        let (task, actor) = (task.parse().unwrap(), BeginActor::Script);
        robot.begin(&Begin { task, embodiment: embodiment.clone(), actor }).unwrap();
        for time in 1..=4 {
            let state: Vec<f32> = (0..VALUES).map(|_| next()).collect();
            let values = &[(&state).into(), (&action).into()];
            robot.step(&Step { monotonic_ns: time, reward: None, intervention: false, values }).unwrap();
        }
        robot.end(outcome, EpisodeEnd::Terminated).unwrap().episode
    });
    let mut spoilt = 0;
    for entry in std::fs::read_dir(world.folder.path().join("data/spool")).unwrap() {
        let path = entry.unwrap().path();
        let mut file = File::options().read(true).write(true).open(&path).unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        for (position, _) in bytes.windows(6).enumerate().filter(|(_, word)| word == b"spoilt") {
            file.seek(SeekFrom::Start(position as u64)).unwrap();
            file.write_all(b"SPOILT").unwrap();
            spoilt += 1;
        }
    }
    assert!(spoilt >= 2, "manifests are in the spool in the clear");
    let hub = world.hub_again(address);
    wait_for(&agent, "the receipt of the sound one", |status| status.hub.episodes_durable == 1);
    assert_eq!(hub.held.lock().unwrap().episodes[0].id(), recorded[2]);
    wait_for(&agent, "the freeing of the sound one, alone", |status| status.spool.episodes_waiting == 2);
    agent.stop();
}

#[test]
fn episodes_of_tasks_that_stay_on_site_are_never_offered_and_are_counted() {
    let world = World::new();
    let hub = world.hub(Made::new(), None);
    let agent =
        world.agent_that(hub.address, |config| config.upload.keep_on_site_tasks = vec!["weld".parse().unwrap()]);
    let mut robot = world.program();
    record_task(&mut robot, "weld", 10);
    let leaves = record_task(&mut robot, "push", 10);
    record_task(&mut robot, "weld", 10);
    wait_for(&agent, "the count", |status| status.hub.episodes_kept_on_site == 2 && status.hub.episodes_durable == 1);
    let held: Vec<_> = hub.held.lock().unwrap().episodes.iter().map(Manifest::id).collect();
    assert_eq!(held, [leaves]);
    assert_eq!(hub.held.lock().unwrap().offers, 1, "what stays is not even offered");
    wait_for(&agent, "the freeing of what left, alone", |status| status.spool.episodes_waiting == 2);
    agent.stop();
}

/// Policy number `revision` of a hub whose operator keeps these tasks on site.
fn keeping(revision: u64, tasks: &[&str]) -> PushedPolicy {
    let keep_on_site_tasks = tasks.iter().map(|task| task.parse().unwrap()).collect();
    PushedPolicy { revision, policy: Some(HubPolicy { keep_on_site_tasks, ..HubPolicy::default() }) }
}

#[test]
fn a_policy_of_the_hub_holds_at_once_and_until_it_is_cleared_and_never_sets_the_files_tasks_free() {
    let world = World::new();
    let hub = world.hub_that_allows(keeping(1, &["fold"]));
    let agent =
        world.agent_that(hub.address, |config| config.upload.keep_on_site_tasks = vec!["weld".parse().unwrap()]);
    let mut robot = world.program();
    let folded = record_task(&mut robot, "fold", 10);
    record_task(&mut robot, "weld", 10);
    let pushed = record_task(&mut robot, "push", 10);
    let kept = |count| move |status: &crate::status::Status| status.hub.episodes_kept_on_site == count;
    let ids = || hub.held.lock().unwrap().episodes.iter().map(Manifest::id).collect::<Vec<_>>();
    wait_for(&agent, "the hub's word on the first connection", kept(2));
    wait_for(&agent, "the receipt", |status| status.hub.episodes_durable == 1);
    assert_eq!(ids(), [pushed]);
    // No task of the hub's is left, and an older one comes late: what the file keeps stays all the same.
    hub.policy.send_replace(keeping(3, &[]));
    wait_for(&agent, "the receipt of what may leave again", |status| status.hub.episodes_durable == 2);
    assert_eq!(ids(), [pushed, folded]);
    hub.policy.send_replace(keeping(2, &["push"]));
    let again = record_task(&mut robot, "push", 10);
    wait_for(&agent, "the receipt in spite of the older policy", |status| status.hub.episodes_durable == 3);
    assert_eq!((ids(), agent.status().hub.upload_policy.revision), (vec![pushed, folded, again], 3));
    wait_for(&agent, "what the file keeps", kept(1));
    // Windows and caps hold without another connection.
    let closed = Window::new(0, 1).unwrap();
    let policy = HubPolicy { bytes_per_second_max: Some(1 << 40), windows: vec![closed], ..HubPolicy::default() };
    hub.policy.send_replace(PushedPolicy { revision: 4, policy: Some(policy.clone()) });
    let in_force = |status: &crate::status::Status| status.hub.upload_policy.clone();
    wait_for(&agent, "the cap and the window", |status| {
        let found = in_force(status);
        (found.bytes_per_second_max, &found.windows) == (policy.bytes_per_second_max, &policy.windows)
    });
    hub.policy.send_replace(PushedPolicy { revision: 5, policy: None });
    wait_for(&agent, "the clearing", |status| in_force(status).source == PolicySource::Config);
    wait_for(&agent, "the report", |_| {
        hub.held.lock().unwrap().reports.last().is_some_and(|report| report.upload_policy_revision == 5)
    });
    assert_eq!(hub.held.lock().unwrap().offers, 3, "nothing that stays was ever offered");
    agent.stop();
}

#[test]
fn a_task_that_the_hub_keeps_on_site_is_withdrawn_from_what_waits() {
    let world = World::new();
    let hub = world.hub(Made::new(), None);
    let metered = HubPolicy { metered: true, ..HubPolicy::default() };
    hub.policy.send_replace(PushedPolicy { revision: 1, policy: Some(metered) });
    let agent = world.agent(hub.address);
    let mut robot = world.program();
    wait_for(&agent, "the metered link", |status| status.hub.upload_policy.metered);
    // Unknown outcomes wait on a metered link.
    record_outcome(&mut robot, "fold", 1, Outcome::Unknown);
    hub.policy.send_replace(keeping(2, &["fold"]));
    wait_for(&agent, "the withdrawal", |status| status.hub.episodes_kept_on_site == 1);
    let last = record_task(&mut robot, "push", 1);
    wait_for(&agent, "the receipt", |status| status.hub.episodes_durable == 1);
    assert_eq!(hub.held.lock().unwrap().episodes.iter().map(Manifest::id).collect::<Vec<_>>(), [last]);
    wait_for(&agent, "the freeing of what left, alone", |status| status.spool.episodes_waiting == 1);
    hub.policy.send_replace(keeping(3, &[]));
    wait_for(&agent, "the episode that was withdrawn", |status| status.hub.episodes_durable == 2);
    agent.stop();
}

#[test]
fn metadata_first_sends_no_chunk_before_somebody_asks_for_it() {
    let world = World::new();
    let hub = world.hub(Made::new(), None);
    let agent = world.agent_that(hub.address, |config| config.upload.mode = UploadMode::MetadataFirst);
    let mut robot = world.program();
    let episodes: Vec<EpisodeId> = (0..3).map(|_| record(&mut robot, 10)).collect();
    wait_for(&agent, "the notes", |status| status.hub.episodes_noted == 3);
    let held = || {
        let held = hub.held.lock().unwrap();
        (
            held.noted.iter().copied().collect::<BTreeSet<_>>(),
            held.episodes.iter().map(Manifest::id).collect::<Vec<_>>(),
        )
    };
    assert_eq!(held(), (episodes.iter().copied().collect(), vec![]));
    assert_eq!((hub.held.lock().unwrap().chunks.len(), agent.status().spool.episodes_waiting), (0, 3));
    hub.wanted.send_replace(vec![episodes[1]]);
    wait_for(&agent, "the receipt", |status| status.hub.episodes_durable == 1 && status.spool.episodes_waiting == 2);
    assert_eq!(held().1, [episodes[1]]);
    // After a restart it describes them again, and sends what is asked for.
    agent.stop();
    let agent = world.agent_that(hub.address, |config| config.upload.mode = UploadMode::MetadataFirst);
    wait_for(&agent, "the notes", |status| status.hub.episodes_noted == 2);
    hub.policy.send_replace(PushedPolicy { revision: 1, policy: Some(HubPolicy::default()) });
    wait_for(&agent, "the other mode", |status| status.spool.episodes_waiting == 0);
    // The other two were offered at once, and end in any order.
    let (mut stored, mut recorded) = (held().1, episodes);
    stored.sort();
    recorded.sort();
    assert_eq!(stored, recorded);
    agent.stop();
}

#[test]
fn a_policy_of_the_hub_survives_a_restart_without_the_hub() {
    let world = World::new();
    let hub = world.hub_that_allows(keeping(6, &["fold"]));
    let agent = world.agent(hub.address);
    wait_for(&agent, "the report that it is kept", |_| {
        hub.held.lock().unwrap().reports.last().is_some_and(|report| report.upload_policy_revision == 6)
    });
    let before = agent.status().hub.upload_policy;
    agent.stop();
    let nowhere = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let agent = world.agent(nowhere);
    assert_eq!(agent.status().hub.upload_policy, before);
    assert_eq!((before.source, before.revision), (PolicySource::Hub, 6));
    agent.stop();
    // A hub that went back in time has no say.
    hub.policy.send_replace(keeping(5, &[]));
    let agent = world.agent(hub.address);
    record_task(&mut world.program(), "fold", 1);
    wait_for(&agent, "the connection", |status| {
        status.hub.state == HubState::Connected && status.hub.episodes_kept_on_site == 1
    });
    assert_eq!((agent.status().hub.upload_policy, hub.held.lock().unwrap().offers), (before, 0));
    agent.stop();
}

#[test]
fn an_assigned_release_is_fetched_over_the_connection_and_reported() {
    let world = World::new();
    let mut made = Made::new();
    let release = made.publish(1, 3.0);
    let assignment = made.assign(1, &[&release]);
    let hub = world.hub(made, None);
    let agent = world.agent(hub.address);
    let mut robot = world.program();
    robot.subscribe().unwrap();
    record(&mut robot, 1);
    hub.assign.send_replace(Some(assignment));
    let event = robot.poll_event(Duration::from_secs(60)).unwrap().expect("the release becomes active");
    let Event::ReleaseChanged { version, .. } = event;
    assert_eq!(version.unwrap().0, 1);
    let (skill, task) = ("push".parse().unwrap(), "push".parse().unwrap());
    assert_eq!(robot.act(&skill, &task, true, &[0.0; 2]).unwrap().values, [3.0]);
    wait_for(&agent, "the report", |_| {
        let held = hub.held.lock().unwrap();
        held.reports.last().is_some_and(|report| {
            report.releases.iter().any(|release| release.state == zunft_protocol::message::ReleaseState::Active)
        })
    });
    agent.stop();
}

#[test]
fn an_agent_of_another_hub_says_so_and_goes_on_recording() {
    let world = World::new();
    let hub = world.hub(Made::new(), None);
    // Its certificate is of another authority than the hub's, which it trusts all the same.
    Authority::new().enrol(world.folder.path());
    let agent = world.agent(hub.address);
    wait_for(&agent, "the refusal", |status| status.hub.last_error.is_some());
    let error = agent.status().hub.last_error.unwrap();
    assert!(error.contains("certificate") && error.contains("zunft robot add"), "{error}");
    record(&mut world.program(), 3);
    assert_eq!(agent.status().spool.episodes_waiting, 1);
    agent.stop();
}

#[test]
fn a_hub_that_is_not_ours_is_not_believed() {
    let world = World::new();
    let hub = world.hub(Made::new(), None);
    std::fs::write(world.folder.path().join("ca.pem"), Authority::new().pem).unwrap();
    let agent = world.agent(hub.address);
    wait_for(&agent, "the refusal", |status| status.hub.last_error.is_some());
    let error = agent.status().hub.last_error.unwrap();
    assert!(error.contains("hub.ca"), "{error}");
    agent.stop();
}
