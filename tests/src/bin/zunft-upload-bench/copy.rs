//! A plain copy over QUIC between two processes: the same bytes, from the robot's spool into a file that is not synced.
//! And its limit: as many bytes from memory into nothing.

use std::fs::File;
use std::io::{BufWriter, Read as _, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail, ensure};
use bytes::{Bytes, BytesMut};
use quinn::{Connection, Endpoint, Incoming};
use tokio::task::JoinSet;
use zunft_hub::pki::Pki;
use zunft_tests::peer::{self, Credentials};

use super::node::{Node, cpu_of};
use super::{Measured, now};

/// Bytes handed to QUIC at once.
const PIECE_BYTES: usize = 256 * 1024;

/// Where the copy goes.
const COPY: &str = "copy";

/// What the receiver says when it has everything.
const DONE: u8 = 1;

/// What the bytes come from and go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Between {
    /// The robot's spool and a file.
    Files,
    /// One piece of memory, again and again, and nothing.
    Memory,
}

impl Between {
    fn name(self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::Memory => "memory",
        }
    }

    pub(crate) fn parse(name: &str) -> anyhow::Result<Self> {
        let found = [Self::Files, Self::Memory].into_iter().find(|between| between.name() == name);
        found.with_context(|| format!("{name:?} is neither files nor memory"))
    }
}

/// Copies so many bytes and measures both ends.
pub(crate) fn measure(folder: &Path, between: Between, bytes: u64) -> anyhow::Result<Measured> {
    let address = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let receiver = receiver(folder, &address, between)?;
    let output = myself("send", folder, &address, between)?.arg(bytes.to_string()).output()?;
    ensure!(output.status.success(), "the sender failed: {}", String::from_utf8_lossy(&output.stderr));
    let receiver_cpu = receiver.cpu()?;
    drop(receiver);
    if between == Between::Files {
        let copied = folder.join(COPY);
        ensure!(copied.metadata()?.len() == bytes, "the copy is not whole");
        std::fs::remove_file(copied)?;
    }
    let (secs, cpu): (f64, f64) = serde_json::from_slice(&output.stdout).context("the sender's figures")?;
    Ok(Measured::new(bytes, Duration::from_secs_f64(secs), Duration::from_secs_f64(cpu), receiver_cpu))
}

/// A process that takes what comes.
pub(crate) fn receiver(folder: &Path, address: &str, between: Between) -> anyhow::Result<Node> {
    Node::spawn(myself("receive", folder, address, between)?)
}

fn myself(role: &str, folder: &Path, address: &str, between: Between) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(role).arg(folder).arg(address).arg(between.name());
    Ok(command)
}

/// Takes what comes on each connection, and answers at its end.
pub(crate) fn receive(folder: &Path, address: SocketAddr, between: Between) -> anyhow::Result<()> {
    let since_1970 = SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
    let pki = Pki::open(&folder.join("hub/pki"), since_1970)?;
    let config = zunft_hub::ingest::server_config(&pki, since_1970)?;
    tokio::runtime::Runtime::new()?.block_on(async {
        let endpoint = Endpoint::server(config, address)?;
        let mut receiving = JoinSet::new();
        let to = (between == Between::Files).then(|| folder.join(COPY));
        // Its CPU time is read before it is ended.
        while let Some(incoming) = endpoint.accept().await {
            receiving.spawn(receive_on(incoming, to.clone()));
        }
        bail!("the endpoint is closed")
    })
}

async fn receive_on(incoming: Incoming, to: Option<PathBuf>) -> anyhow::Result<()> {
    let connection = incoming.await?;
    let (mut send, mut recv) = connection.accept_bi().await?;
    if let Some(to) = to {
        // As quick as a copy gets: large writes into the page cache, from the thread that has the bytes.
        let mut file = BufWriter::with_capacity(PIECE_BYTES, File::create(to)?);
        while let Some(chunk) = recv.read_chunk(PIECE_BYTES, true).await? {
            file.write_all(&chunk.bytes)?;
        }
        file.flush()?;
    } else {
        while recv.read_chunk(PIECE_BYTES, true).await?.is_some() {}
    }
    send.write_all(&[DONE]).await?;
    send.finish()?;
    connection.closed().await;
    Ok(())
}

/// Where the bytes that are sent come from.
pub(crate) enum Source {
    Memory(Bytes),
    Spool(Segments),
}

impl Source {
    /// One piece of memory, again and again.
    pub(crate) fn memory() -> Self {
        Self::Memory((0..PIECE_BYTES).map(|i| ((i * 31) >> 3) as u8).collect())
    }

    fn piece(&mut self, bytes_max: usize) -> anyhow::Result<Bytes> {
        match self {
            Self::Memory(piece) => Ok(piece.slice(..bytes_max)),
            Self::Spool(segments) => segments.piece(bytes_max),
        }
    }
}

/// Sends so many bytes over a connection, and waits for the answer; it is never put off.
pub(crate) async fn send_on(connection: Connection, mut source: Source, bytes: u64) -> anyhow::Result<u64> {
    let (mut send, mut recv) = connection.open_bi().await?;
    let mut left = bytes;
    while left > 0 {
        let piece = source.piece(PIECE_BYTES.min(left as usize))?;
        left -= piece.len() as u64;
        send.write_chunk(piece).await?;
    }
    send.finish()?;
    let mut answer = [0];
    recv.read_exact(&mut answer).await?;
    ensure!(answer == [DONE], "the receiver did not answer");
    Ok(0)
}

/// Reads pieces of the spool's segments, one after the other, without an end before the last.
pub(crate) struct Segments {
    folder: PathBuf,
    names: std::vec::IntoIter<std::ffi::OsString>,
    file: Option<File>,
}

impl Segments {
    fn open(folder: PathBuf) -> anyhow::Result<Self> {
        let names = std::fs::read_dir(&folder)?.map(|entry| entry.map(|entry| entry.file_name()));
        let mut names: Vec<_> = names.collect::<Result<_, _>>()?;
        names.sort();
        Ok(Self { folder, names: names.into_iter(), file: None })
    }

    fn piece(&mut self, bytes_max: usize) -> anyhow::Result<Bytes> {
        loop {
            if let Some(file) = &mut self.file {
                let mut piece = BytesMut::zeroed(bytes_max);
                let read = file.read(&mut piece)?;
                piece.truncate(read);
                if read > 0 {
                    return Ok(piece.freeze());
                }
            }
            let name = self.names.next().context("the spool holds less than was recorded")?;
            self.file = Some(File::open(self.folder.join(name))?);
        }
    }
}

/// Sends so many bytes; prints the seconds until they were answered, and its CPU seconds.
pub(crate) fn send(folder: &Path, address: SocketAddr, between: Between, bytes: u64) -> anyhow::Result<()> {
    let read = |name: &str| std::fs::read_to_string(folder.join(name));
    let credentials =
        Credentials { certificate_pem: read("robot.pem")?, key_pem: read("robot.key")?, ca_pem: read("ca.pem")? };
    let (took, cpu) = tokio::runtime::Runtime::new()?.block_on(async {
        let endpoint = Endpoint::client("127.0.0.1:0".parse()?)?;
        let connection = peer::connect(&endpoint, address, credentials.client_config()?).await?;
        let (began, cpu_began) = (now(), cpu_of(std::process::id())?);
        let source = match between {
            Between::Memory => Source::memory(),
            Between::Files => Source::Spool(Segments::open(folder.join("agent/spool"))?),
        };
        send_on(connection, source, bytes).await?;
        anyhow::Ok((now() - began, cpu_of(std::process::id())? - cpu_began))
    })?;
    writeln!(std::io::stdout(), "{}", serde_json::to_string(&(took.as_secs_f64(), cpu.as_secs_f64()))?)?;
    Ok(())
}
