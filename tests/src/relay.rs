//! A UDP relay between a robot and its hub: it shapes, loses, counts, cuts, and moves to another address.
//!
//! The shell around two [`Link`]s. Each direction has a thread that receives and one that sends when a packet is due;
//! datagrams are passed on whole, so that what one end counts is what the other end sends.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::link::{Arrivals, Link, LinkConfig};

/// How often a thread that hears nothing looks whether it shall end.
const GLANCE: Duration = Duration::from_millis(50);

const DATAGRAM_BYTES_MAX: usize = 2048;

/// What is on its way in one direction.
#[derive(Debug, Default)]
struct Way {
    /// `None`: nothing is shaped.
    link: Option<Link>,
    /// By arrival, then by number.
    packets: BTreeMap<(Instant, u64), Vec<u8>>,
    number: u64,
}

#[derive(Debug, Default)]
struct Direction {
    way: Mutex<Way>,
    arrived: Condvar,
}

impl Direction {
    fn lock(&self) -> MutexGuard<'_, Way> {
        self.way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, packet: &[u8]) {
        let mut way = self.lock();
        let now = now();
        let arrivals: Arrivals = way.link.as_mut().map_or_else(|| vec![now], |link| link.send(packet.len(), now));
        for at in arrivals {
            way.number += 1;
            let key = (at, way.number);
            way.packets.insert(key, packet.to_vec());
        }
        self.arrived.notify_one();
    }

    /// The next packet that is due; waits for it for a while.
    fn pop(&self) -> Option<Vec<u8>> {
        let mut way = self.lock();
        let due = way.packets.first_key_value().map(|((at, _), _)| *at);
        let now = now();
        if due.is_some_and(|at| at <= now) {
            return way.packets.pop_first().map(|(_, packet)| packet);
        }
        let patience = due.map_or(GLANCE, |at| (at - now).min(GLANCE));
        drop(self.arrived.wait_timeout(way, patience));
        None
    }
}

#[derive(Debug)]
struct Shared {
    hub: SocketAddr,
    front: UdpSocket,
    /// Towards the hub; another one after a change of address.
    back: Mutex<Arc<UdpSocket>>,
    robot: Mutex<Option<SocketAddr>>,
    /// A robot's address that is not known any more.
    forgotten: Mutex<Option<SocketAddr>>,
    up: Direction,
    down: Direction,
    bytes_from_robot: AtomicU64,
    cut: AtomicBool,
    stop: AtomicBool,
}

impl Shared {
    fn back(&self) -> Arc<UdpSocket> {
        Arc::clone(&self.back.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// A relay that runs until it is dropped.
#[derive(Debug)]
pub struct Relay {
    shared: Arc<Shared>,
    address: SocketAddr,
    threads: Vec<JoinHandle<()>>,
}

impl Relay {
    /// Relays between whoever speaks to its address and `hub`; unshaped.
    pub fn start(hub: SocketAddr) -> io::Result<Self> {
        let front = UdpSocket::bind("127.0.0.1:0")?;
        front.set_read_timeout(Some(GLANCE))?;
        let address = front.local_addr()?;
        let shared = Arc::new(Shared {
            hub,
            front,
            back: Mutex::new(Arc::new(open_back(hub)?)),
            robot: Mutex::default(),
            forgotten: Mutex::default(),
            up: Direction::default(),
            down: Direction::default(),
            bytes_from_robot: AtomicU64::new(0),
            cut: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let mut relay = Self { shared, address, threads: Vec::new() };
        relay.spawn(hear_robot);
        relay.spawn(hear_hub);
        relay.spawn(tell_robot);
        relay.spawn(tell_hub);
        Ok(relay)
    }

    fn spawn(&mut self, work: fn(&Shared)) {
        let shared = Arc::clone(&self.shared);
        self.threads.push(std::thread::spawn(move || work(&shared)));
    }

    /// Where robots connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Shapes both directions from now on; what is under way still arrives.
    pub fn shape(&self, config: LinkConfig, seed: u64) {
        let now = now();
        self.shared.up.lock().link = Some(Link::new(config, seed, now));
        self.shared.down.lock().link = Some(Link::new(config, seed.wrapping_add(1), now));
    }

    /// Passes nothing on, or everything again.
    pub fn cut(&self, cut: bool) {
        self.shared.cut.store(cut, Ordering::Relaxed);
    }

    /// UDP payload that came from the robot so far.
    pub fn bytes_from_robot(&self) -> u64 {
        self.shared.bytes_from_robot.load(Ordering::Relaxed)
    }

    /// From now on nothing passes from or to the robot's present address, as when a router loses its table.
    pub fn forget_robot(&self) {
        let robot = self.shared.robot.lock().unwrap_or_else(PoisonError::into_inner).take();
        *self.shared.forgotten.lock().unwrap_or_else(PoisonError::into_inner) = robot;
    }

    /// From now on the hub sees the robot at another address; what it sends to the old one is lost.
    pub fn change_address(&self) -> io::Result<()> {
        let back = Arc::new(open_back(self.shared.hub)?);
        *self.shared.back.lock().unwrap_or_else(PoisonError::into_inner) = back;
        Ok(())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

fn open_back(hub: SocketAddr) -> io::Result<UdpSocket> {
    let back = UdpSocket::bind("127.0.0.1:0")?;
    back.set_read_timeout(Some(GLANCE))?;
    back.connect(hub)?;
    Ok(back)
}

fn hear_robot(shared: &Shared) {
    let mut buffer = [0; DATAGRAM_BYTES_MAX];
    while !shared.stopped() {
        // A timeout, or a complaint about an earlier datagram: listen on.
        let Ok((bytes, from)) = shared.front.recv_from(&mut buffer) else { continue };
        if *shared.forgotten.lock().unwrap_or_else(PoisonError::into_inner) == Some(from) {
            continue;
        }
        shared.bytes_from_robot.fetch_add(bytes as u64, Ordering::Relaxed);
        *shared.robot.lock().unwrap_or_else(PoisonError::into_inner) = Some(from);
        if !shared.cut.load(Ordering::Relaxed) {
            shared.up.push(&buffer[..bytes]);
        }
    }
}

fn hear_hub(shared: &Shared) {
    let mut buffer = [0; DATAGRAM_BYTES_MAX];
    while !shared.stopped() {
        let Ok(bytes) = shared.back().recv(&mut buffer) else { continue };
        if !shared.cut.load(Ordering::Relaxed) {
            shared.down.push(&buffer[..bytes]);
        }
    }
}

fn tell_hub(shared: &Shared) {
    while !shared.stopped() {
        if let Some(packet) = shared.up.pop() {
            drop(shared.back().send(&packet));
        }
    }
}

fn tell_robot(shared: &Shared) {
    while !shared.stopped() {
        let Some(packet) = shared.down.pop() else { continue };
        let robot = *shared.robot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(robot) = robot {
            drop(shared.front.send_to(&packet, robot));
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the relay is a shell: it gives its links the time")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_pass_both_ways_are_counted_and_move_with_the_address() {
        let hub = UdpSocket::bind("127.0.0.1:0").unwrap();
        let relay = Relay::start(hub.local_addr().unwrap()).unwrap();
        let robot = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut buffer = [0; 64];
        let mut exchange = |word: &[u8]| {
            robot.send_to(word, relay.address()).unwrap();
            let (bytes, from) = hub.recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..bytes], word);
            hub.send_to(b"yes", from).unwrap();
            assert_eq!(robot.recv_from(&mut buffer).unwrap(), (3, relay.address()));
            from
        };
        let first = exchange(b"here?");
        assert_eq!(relay.bytes_from_robot(), 5);
        relay.change_address().unwrap();
        assert_ne!(exchange(b"and now?"), first);
        assert_eq!(relay.bytes_from_robot(), 13);
    }
}
