//! What a collector hears of a hub and an agent. In a program of its own: it takes the process' subscriber.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use zunft_agent::telemetry::Telemetry;
use zunft_tests::world::World;

/// Nothing that is waited for here takes half as long, even on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Answers one exporter's requests, and tells what came: the request line and the body.
fn collect(mut stream: TcpStream, heard: &Sender<(String, Vec<u8>)>) {
    let mut bytes = Vec::new();
    let mut part = [0; 65536];
    loop {
        let head = bytes.windows(4).position(|end| end == b"\r\n\r\n").map(|at| at + 4);
        if let Some(begin) = head {
            let head = String::from_utf8_lossy(&bytes[..begin]).to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
            let end = begin + length.unwrap_or(0_usize);
            if bytes.len() >= end {
                let line = head.lines().next().unwrap_or_default().to_owned();
                heard.send((line, bytes[begin..end].to_vec())).unwrap();
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
                bytes.drain(..end);
                continue;
            }
        }
        match stream.read(&mut part) {
            Ok(0) | Err(_) => return,
            Ok(count) => bytes.extend_from_slice(&part[..count]),
        }
    }
}

#[test]
fn a_collector_hears_of_the_connection_and_of_every_upload_with_its_names() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (heard, hearing) = channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let heard = heard.clone();
            thread::spawn(move || collect(stream.unwrap(), &heard));
        }
    });
    let telemetry = Telemetry::begin("hub-of-this-test", "warn", Some(&endpoint)).unwrap();
    let agent = format!("[telemetry]\notlp_endpoint = {endpoint:?}");
    let mut world = World::start(Path::new(env!("CARGO_BIN_EXE_zunft-test-node")), &agent).unwrap();
    world.start_agent().unwrap();
    let episodes = world.record(96_000, 48_000).unwrap();
    world.wait_until_uploaded(PATIENCE).unwrap();
    world.stop_agent().unwrap();
    drop(world);
    telemetry.stop();
    let all: Vec<_> = hearing.try_iter().collect();
    assert!(!all.is_empty(), "nothing was exported");
    let mut exported: BTreeMap<&str, String> = BTreeMap::new();
    for (line, body) in all {
        assert_eq!(line, "post /v1/traces http/1.1");
        let text = String::from_utf8_lossy(&body);
        let service = ["hub-of-this-test", "zunft-agent"].into_iter().find(|name| text.contains(name)).unwrap();
        exported.entry(service).or_default().push_str(&text);
    }
    assert_eq!((exported.len(), episodes.len()), (2, 2), "hub and agent");
    for (service, text) in exported {
        for name in ["connection", "upload", "tenant", "default", "robot", "r1"] {
            assert!(text.contains(name), "{service} exported {name}");
        }
        for episode in &episodes {
            assert!(text.contains(&episode.to_string()), "{service} exported the upload of {episode}");
        }
    }
}
