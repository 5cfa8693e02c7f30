//! The limit: as many bytes over QUIC between two processes, from memory to memory.

use std::io::Write as _;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use quinn::{Connection, Endpoint, Incoming};
use tokio::task::JoinSet;
use zunft_hub::pki::Pki;
use zunft_tests::peer::{self, Credentials};

use super::node::{Node, cpu_of};
use super::{Measured, now};

/// Bytes handed to QUIC at once.
const PIECE_BYTES: usize = 256 * 1024;

/// What the receiver says when it has everything.
const DONE: u8 = 1;

/// Copies so many bytes and measures both ends.
pub(crate) fn measure(folder: &Path, bytes: u64) -> anyhow::Result<Measured> {
    let address = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let receiver = receiver(folder, &address)?;
    let output = myself("send", folder, &address)?.arg(bytes.to_string()).output()?;
    ensure!(output.status.success(), "the sender failed: {}", String::from_utf8_lossy(&output.stderr));
    let receiver_cpu = receiver.cpu()?;
    let (secs, cpu): (f64, f64) = serde_json::from_slice(&output.stdout).context("the sender's figures")?;
    Ok(Measured::new(bytes, Duration::from_secs_f64(secs), Duration::from_secs_f64(cpu), receiver_cpu))
}

/// A process that takes what comes.
pub(crate) fn receiver(folder: &Path, address: &str) -> anyhow::Result<Node> {
    Node::spawn(myself("receive", folder, address)?)
}

fn myself(role: &str, folder: &Path, address: &str) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(role).arg(folder).arg(address);
    Ok(command)
}

/// Takes what comes on each connection, and answers at its end.
pub(crate) fn receive(folder: &Path, address: SocketAddr) -> anyhow::Result<()> {
    let since_1970 = SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
    let pki = Pki::open(&folder.join("hub/pki"), since_1970)?;
    let config = zunft_hub::ingest::server_config(&pki, since_1970)?;
    tokio::runtime::Runtime::new()?.block_on(async {
        let endpoint = Endpoint::server(config, address)?;
        let mut receiving = JoinSet::new();
        // Its CPU time is read before it is ended.
        while let Some(incoming) = endpoint.accept().await {
            receiving.spawn(receive_on(incoming));
        }
        bail!("the endpoint is closed")
    })
}

async fn receive_on(incoming: Incoming) -> anyhow::Result<()> {
    let connection = incoming.await?;
    let (mut send, mut recv) = connection.accept_bi().await?;
    while recv.read_chunk(PIECE_BYTES, true).await?.is_some() {}
    send.write_all(&[DONE]).await?;
    send.finish()?;
    connection.closed().await;
    Ok(())
}

/// Sends so many bytes over a connection, and waits for the answer; it is never put off.
pub(crate) async fn send_on(connection: Connection, bytes: u64) -> anyhow::Result<u64> {
    let piece = Bytes::from((0..PIECE_BYTES).map(|i| ((i * 31) >> 3) as u8).collect::<Vec<u8>>());
    let (mut send, mut recv) = connection.open_bi().await?;
    let mut left = bytes;
    while left > 0 {
        let piece = piece.slice(..PIECE_BYTES.min(left as usize));
        left -= piece.len() as u64;
        send.write_chunk(piece).await?;
    }
    send.finish()?;
    let mut answer = [0];
    recv.read_exact(&mut answer).await?;
    ensure!(answer == [DONE], "the receiver did not answer");
    Ok(0)
}

/// Sends so many bytes; prints the seconds until they were answered, and its CPU seconds.
pub(crate) fn send(folder: &Path, address: SocketAddr, bytes: u64) -> anyhow::Result<()> {
    let read = |name: &str| std::fs::read_to_string(folder.join(name));
    let credentials =
        Credentials { certificate_pem: read("robot.pem")?, key_pem: read("robot.key")?, ca_pem: read("ca.pem")? };
    let (took, cpu) = tokio::runtime::Runtime::new()?.block_on(async {
        let endpoint = Endpoint::client("127.0.0.1:0".parse()?)?;
        let connection = peer::connect(&endpoint, address, credentials.client_config()?).await?;
        let (began, cpu_began) = (now(), cpu_of(std::process::id())?);
        send_on(connection, bytes).await?;
        anyhow::Ok((now() - began, cpu_of(std::process::id())? - cpu_began))
    })?;
    writeln!(std::io::stdout(), "{}", serde_json::to_string(&(took.as_secs_f64(), cpu.as_secs_f64()))?)?;
    Ok(())
}
