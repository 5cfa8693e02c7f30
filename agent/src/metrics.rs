//! The agent's numbers for Prometheus: its text format, answered to whoever asks at a local port.
//!
//! Off unless `metrics.listen` is set. It answers one request at a time and knows nothing of HTTP but how to end a
//! request's head: any request gets the numbers.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use zunft_protocol::episode::WallQuality;

use crate::status::Status;
use crate::uplink::HubState;

/// How long one who asks may take for its request, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Largest head of a request.
const HEAD_BYTES_MAX: usize = 8 * 1024;

/// The open port. Dropped, it closes.
#[derive(Debug)]
pub(crate) struct MetricsServer {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl MetricsServer {
    /// Opens the port; `status` is asked for each answer.
    pub(crate) fn start(listen: SocketAddr, status: impl Fn() -> Status + Send + 'static) -> io::Result<Self> {
        let listener = TcpListener::bind(listen)?;
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let work = move || {
            while let Ok((stream, _)) = listener.accept() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                if let Err(error) = answer(stream, &status) {
                    tracing::debug!(%error, "numbers were not taken");
                }
            }
        };
        let thread = Some(std::thread::Builder::new().name("metrics".into()).spawn(work)?);
        tracing::info!(%address, "numbers for Prometheus");
        Ok(Self { address, stop, thread })
    }

    /// Where it listens.
    #[cfg(test)]
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread.
        drop(TcpStream::connect_timeout(&self.address, PATIENCE));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn answer(mut stream: TcpStream, status: &impl Fn() -> Status) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let (mut head, mut piece) = (Vec::new(), [0; 1024]);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < HEAD_BYTES_MAX {
        let read = stream.read(&mut piece)?;
        if read == 0 {
            return Ok(());
        }
        head.extend_from_slice(&piece[..read]);
    }
    let body = prometheus(&status());
    write!(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// A status in Prometheus' text format.
pub(crate) fn prometheus(status: &Status) -> String {
    let mut text = String::new();
    let mut line = |kind: &str, name: &str, help: &str, value: f64| {
        let name = format!("zunft_agent_{name}");
        text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n"));
    };
    let flag = |set: bool| f64::from(u8::from(set));
    let (hub, spool) = (&status.hub, &status.spool);
    let synchronised = status.clock == WallQuality::Synchronised;
    line("gauge", "hub_connected", "Whether the hub answers.", flag(hub.state == HubState::Connected));
    line("gauge", "clock_synchronised", "Whether the wall clock is disciplined.", flag(synchronised));
    line("gauge", "episodes_waiting", "Whole episodes that the hub does not hold yet.", spool.episodes_waiting as f64);
    line("gauge", "bytes_waiting", "Bytes of their chunks.", spool.bytes_waiting as f64);
    line("gauge", "spool_bytes", "Bytes of the spool on disk.", spool.bytes as f64);
    line("gauge", "spool_bytes_max", "Bytes that the spool may have.", spool.bytes_max as f64);
    line("gauge", "spool_encrypted", "Whether what is recorded now is encrypted.", flag(spool.encrypted));
    line("gauge", "spool_segments_in_clear", "Segments that are not.", spool.segments_in_clear as f64);
    line("gauge", "steps_refused", "Whether steps are refused now.", flag(spool.refuses.is_some()));
    line("gauge", "recordings_open", "Recordings that are open.", spool.recordings_open as f64);
    line("counter", "recordings_total", "Recordings since the installation.", spool.recordings_total as f64);
    line("gauge", "upload_bytes_per_second", "UDP bytes that leave a second.", hub.bytes_per_second);
    line("counter", "uploaded_bytes_total", "Bytes of chunks sent.", hub.bytes_uploaded as f64);
    line("counter", "episodes_durable_total", "Episodes that became durable.", hub.episodes_durable as f64);
    line("counter", "episodes_rejected_total", "Episodes that the hub refused.", hub.episodes_rejected as f64);
    line("gauge", "episodes_kept_on_site", "Episodes that are never offered.", hub.episodes_kept_on_site as f64);
    line("gauge", "upload_window_open", "Whether uploads are allowed now.", flag(hub.upload_window_open));
    line("counter", "port_changes_total", "Times that another port was tried.", hub.port_changes as f64);
    if let Some(secs) = hub.last_receipt_unix_secs {
        line("gauge", "last_receipt_timestamp_seconds", "The hub's time of the last receipt.", secs as f64);
    }
    for (quantile, millis) in [("p50", hub.round_trip_ms_p50), ("p99", hub.round_trip_ms_p99)] {
        if let Some(millis) = millis {
            let name = format!("hub_round_trip_{quantile}_seconds");
            line("gauge", &name, "How long the hub's signs of life took.", millis / 1e3);
        }
    }
    text
}
