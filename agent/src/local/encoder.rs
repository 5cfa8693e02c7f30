//! Raw images become JPEG on a thread of their own, so that no control loop waits for it.
//!
//! The queue before the thread is bounded by bytes. When it is full the oldest images are dropped: the newest say
//! most about what goes on. They are counted, and END tells how many.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use jpeg_encoder::{ColorType, EncodingError};
use zunft_protocol::limits::SAMPLE_BYTES_MAX;

use crate::spool::SampleSender;

/// Raw images that may wait: a second of one 640x480 camera at 30 Hz is 28 MB.
const QUEUE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What policies are trained on; the loss is hard to see.
const QUALITY: u8 = 90;

/// For an image that is too large for a chunk otherwise: noise, mostly.
const QUALITY_LOW: u8 = 40;

/// A raw image on its way.
#[derive(Debug)]
pub(super) struct Picture {
    pub(super) stream: u16,
    pub(super) monotonic_ns: i64,
    pub(super) height: u32,
    pub(super) width: u32,
    /// 3 for RGB, 1 for grey.
    pub(super) channels: u32,
    /// `[height, width, channels]`, row-major.
    pub(super) pixels: Vec<u8>,
}

#[derive(Debug, Default)]
struct Queue {
    pictures: VecDeque<Picture>,
    bytes: usize,
    closed: bool,
    dropped: u64,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next picture; `None` when the queue is closed and empty.
    fn next(&self) -> Option<Picture> {
        let mut queue = self.lock();
        loop {
            if let Some(picture) = queue.pictures.pop_front() {
                queue.bytes -= picture.pixels.len();
                return Some(picture);
            }
            if queue.closed {
                return None;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The encoder of one recording.
#[derive(Debug)]
pub(super) struct Encoder {
    shared: Arc<Shared>,
    /// `None` where the system had no thread to give: then every image is dropped, and counted.
    thread: Option<JoinHandle<()>>,
}

impl Encoder {
    pub(super) fn start(sender: SampleSender) -> Self {
        let shared = Arc::new(Shared::default());
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("jpeg".into()).spawn(move || run(&for_thread, &sender));
        let thread = thread.inspect_err(|error| tracing::error!(%error, "no thread to encode images on"));
        Self { shared, thread: thread.ok() }
    }

    /// Takes a picture, at the cost of the oldest that wait.
    pub(super) fn offer(&self, picture: Picture) {
        let mut queue = self.shared.lock();
        queue.offer(picture);
        if self.thread.is_none() {
            queue.drop_oldest();
        }
        drop(queue);
        self.shared.changed.notify_one();
    }

    /// Waits until what is queued is encoded; returns how many were dropped.
    pub(super) fn finish(self) -> u64 {
        self.shared.lock().closed = true;
        self.shared.changed.notify_one();
        if self.thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that encodes images failed");
        }
        let queue = self.shared.lock();
        let dropped = queue.dropped + queue.pictures.len() as u64;
        if dropped > 0 {
            tracing::warn!(dropped, "raw images came faster than they could be encoded; the oldest were left out");
        }
        dropped
    }
}

impl Queue {
    fn offer(&mut self, picture: Picture) {
        while !self.pictures.is_empty() && self.bytes + picture.pixels.len() > QUEUE_BYTES_MAX {
            self.drop_oldest();
        }
        self.bytes += picture.pixels.len();
        self.pictures.push_back(picture);
    }

    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.pictures.pop_front() {
            self.bytes -= oldest.pixels.len();
            self.dropped += 1;
        }
    }
}

fn run(shared: &Shared, sender: &SampleSender) {
    while let Some(picture) = shared.next() {
        let row = match encode(&picture) {
            Ok(row) => row,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "a raw image cannot be encoded");
                shared.lock().dropped += 1;
                continue;
            }
        };
        // A recording that was refused is over; its connection hears why with the next step.
        if sender.send(picture.stream, true, row).is_err() {
            shared.lock().dropped += 1;
        }
    }
}

/// Why a raw image is left out.
#[derive(Debug, thiserror::Error)]
enum EncodeError {
    #[error("the encoder refuses it")]
    Refused(#[from] EncodingError),
    #[error("it has {width} x {height} pixels; JPEG has at most 65,535 a side")]
    Side { width: u32, height: u32 },
    #[error("it has {bytes} bytes as JPEG; at most {SAMPLE_BYTES_MAX} are allowed: send smaller images")]
    TooLarge { bytes: usize },
}

/// The row of the image's stream: its time, and the JPEG.
fn encode(picture: &Picture) -> Result<Vec<u8>, EncodeError> {
    let &Picture { height, width, channels, monotonic_ns, ref pixels, .. } = picture;
    let side = |side: u32| u16::try_from(side).map_err(|_| EncodeError::Side { width, height });
    let color = if channels == 1 { ColorType::Luma } else { ColorType::Rgb };
    let mut bytes = 0;
    for quality in [QUALITY, QUALITY_LOW] {
        let mut row = Vec::with_capacity(pixels.len() / 8);
        row.extend_from_slice(&monotonic_ns.to_le_bytes());
        jpeg_encoder::Encoder::new(&mut row, quality).encode(pixels, side(width)?, side(height)?, color)?;
        bytes = row.len() - size_of_val(&monotonic_ns);
        if bytes <= SAMPLE_BYTES_MAX {
            return Ok(row);
        }
    }
    Err(EncodeError::TooLarge { bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(monotonic_ns: i64, height: u32, width: u32, channels: u32) -> Picture {
        let pixels = (0..height * width * channels).map(|i| (i / channels % width) as u8).collect();
        Picture { stream: 1, monotonic_ns, height, width, channels, pixels }
    }

    #[test]
    fn a_full_queue_drops_the_oldest_and_counts_them() {
        let mut queue = Queue::default();
        let count = 3 + QUEUE_BYTES_MAX as i64 / (480 * 640 * 3);
        for time in 0..count {
            queue.offer(picture(time, 480, 640, 3));
            assert!(queue.bytes <= QUEUE_BYTES_MAX);
        }
        assert_eq!(queue.dropped, 3);
        assert_eq!(queue.pictures.front().unwrap().monotonic_ns, 3);
        assert_eq!(queue.pictures.back().unwrap().monotonic_ns, count - 1);
    }

    #[test]
    fn a_picture_becomes_a_jpeg_of_its_size_behind_its_time() {
        for channels in [1, 3] {
            let row = encode(&picture(258, 48, 64, channels)).unwrap();
            assert_eq!(row[..8], 258_i64.to_le_bytes());
            let jpeg = &row[8..];
            assert_eq!((&jpeg[..2], &jpeg[jpeg.len() - 2..]), (&[0xff, 0xd8][..], &[0xff, 0xd9][..]));
            // The frame header: precision, height, width, components.
            let frame = jpeg.windows(2).position(|marker| marker == [0xff, 0xc0]).unwrap() + 4;
            assert_eq!(jpeg[frame..frame + 6], [8, 0, 48, 0, 64, channels as u8]);
        }
        assert!(matches!(encode(&picture(1, 1, 70_000, 1)), Err(EncodeError::Side { .. })));
    }
}
